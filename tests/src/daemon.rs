//! The daemon of the node a case runs in: killed, and started again, with or without a fault file.

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cri::{Cri, SOCKET};
use crate::held;

/// Where faults are ordered; the daemons that [`start`] starts look at it.
pub const FAULTS: &str = "/run/isopod-faults";

/// Log of the daemons that [`start`] starts, beside those of the node, which outlive it when a case fails.
pub const LOG: &str = "/run/node/isopod-case.log";

/// The daemon as it is released, which the node starts.
const RELEASED: &str = "/usr/lib/isopod/isopod";

/// The daemon that looks for faults.
const WITH_FAULTS: &str = "/usr/lib/isopod/with-faults/isopod";

/// Kills the daemon as the kernel would for want of memory, and waits until it is gone.
pub fn kill() -> Result<()> {
    for pid in pids()? {
        // It may go by itself meanwhile.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    wait_gone()
}

/// Waits until there is no daemon.
pub fn wait_gone() -> Result<()> {
    let begin = Instant::now();
    while !pids()?.is_empty() {
        ensure!(begin.elapsed() < Duration::from_secs(20), "the daemon does not die");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a daemon that looks for faults, and waits until it serves.
pub fn start() -> Result<()> {
    start_program(WITH_FAULTS)
}

/// Starts the daemon as it is released, and tells it where faults are ordered all the same.
pub fn start_released() -> Result<()> {
    start_program(RELEASED)
}

fn start_program(program: &str) -> Result<()> {
    let log = File::options().create(true).append(true).open(LOG)?;
    // Its children are not this process's: nobody waits for them here.
    Command::new("setsid")
        .args(["--fork", program, "serve"])
        .env("ISOPOD_FAULT_FILE", FAULTS)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("cannot start the daemon")?;
    let begin = Instant::now();
    loop {
        let served = Path::new(SOCKET).exists() && Cri::connect()?.pods().is_ok();
        if served {
            return Ok(());
        }
        let log = || {
            fs::read_to_string(LOG).unwrap_or_default().lines().rev().take(10).collect::<Vec<_>>().join("\n")
        };
        ensure!(
            begin.elapsed() < Duration::from_secs(30),
            "the daemon does not serve; its log, last line first:\n{}",
            log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts a daemon that looks for faults, and does not wait until it serves: it may be told to die before.
pub fn begin() -> Result<Child> {
    let log = File::options().create(true).append(true).open(LOG)?;
    let mut serve = Command::new(WITH_FAULTS);
    serve.arg("serve").env("ISOPOD_FAULT_FILE", FAULTS);
    serve.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    serve.spawn().context("cannot start the daemon")
}

/// Kills it and starts another.
pub fn restart() -> Result<()> {
    kill()?;
    start()
}

/// Serves with a drop-in of the configuration while `story` is told.
pub fn configured(text: &str, story: impl FnOnce(&Cri) -> Result<()>) -> Result<()> {
    let drop_in = "/etc/isopod/config.toml.d/50-case.toml";
    fs::create_dir_all("/etc/isopod/config.toml.d")?;
    fs::write(drop_in, text)?;
    let outcome = restart().and_then(|()| story(&Cri::connect()?));
    fs::remove_file(drop_in)?;
    restart()?;
    outcome
}

/// Orders a fault, see `runtime/src/undo.rs`; `None` orders none.
pub fn order_fault(fault: Option<&str>) -> Result<()> {
    match fault {
        Some(text) => fs::write(FAULTS, text)?,
        None if Path::new(FAULTS).exists() => fs::remove_file(FAULTS)?,
        None => {}
    }
    Ok(())
}

/// Processes of the daemon.
pub fn pids() -> Result<Vec<i32>> {
    let daemons = held::started_as(|words| match words {
        [program, command, ..] => program.ends_with(b"isopod") && *command == b"serve",
        _ => false,
    });
    Ok(daemons?.into_iter().map(Pid::as_raw).collect())
}
