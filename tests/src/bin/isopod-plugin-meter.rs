//! Stands in a CNI plugin's place and runs it: notes what processor time the plugin and all that it ran have taken.
//!
//! Put there by [`isopod_tests::bench::plugins`] for `pod_start_without_cni`. Input, output, environment and exit status are the
//! plugin's own.

use anyhow::{Context, Result};
use isopod_tests::bench::plugins::{LOG, real};
use nix::sys::resource::{UsageWho, getrusage};
use std::fs::File;
use std::io::Write;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let plugin = real(&std::env::current_exe()?);
    let status = Command::new(&plugin).status().with_context(|| plugin.display().to_string())?;
    let mut microseconds = 0;
    // This program is not the runtime's either: what it takes is taken off with the rest.
    for who in [UsageWho::RUSAGE_CHILDREN, UsageWho::RUSAGE_SELF] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            microseconds += time.tv_sec() * 1_000_000 + time.tv_usec();
        }
    }
    // One write, so that plugins of several pods do not mix their lines.
    let line = format!("{microseconds}\n");
    File::options().create(true).append(true).open(LOG)?.write_all(line.as_bytes())?;
    // A plugin that was killed by a signal has no code.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
