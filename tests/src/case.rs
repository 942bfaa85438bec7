//! End-to-end cases: a test program that runs its cases in a node.
//!
//! ```text
//! cargo test --test cri        on the machine: build and find what is needed, boot one node,
//!   |                          run this same program in it with the same arguments
//!   +-> cri                    in the node: run the cases, one after the other
//! ```

use crate::node::{Job, Node, Settings};
use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::time::Instant;

/// One story with an end that can fail.
pub type Case = (&'static str, fn() -> Result<()>);

/// Names each function as a [`Case`]: `cases!["boot": starts, stops]`.
#[macro_export]
macro_rules! cases {
    ($group:literal: $($case:ident),+ $(,)?) => {
        vec![$((concat!($group, "::", stringify!($case)), $case as fn() -> anyhow::Result<()>)),+]
    };
}

/// The whole `main` of a test program: runs the cases that its command line asks for in a node of this kind.
pub fn run(settings: Settings, cases: Vec<Case>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let in_node = std::env::var_os("ISOPOD_IN_NODE").is_some();
    if in_node || arguments.list {
        // cases share the node's daemon, network and cgroups, and count what is left of each
        arguments.test_threads = Some(1);
        let trials = cases.into_iter().map(|(name, case)| Trial::test(name, move || timed(name, case)));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    match run_in_node(settings) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn run_in_node(settings: Settings) -> Result<u8> {
    let mut command = vec![std::env::current_exe()?.into_os_string()];
    command.extend(std::env::args_os().skip(1));
    Node::start(settings, &Job { command, terminal: false })?.wait()
}

/// Runs a case and tells what it took, by which one sees where a group's time goes.
fn timed(name: &str, case: fn() -> Result<()>) -> Result<(), libtest_mimic::Failed> {
    let begin = Instant::now();
    let result = case();
    eprintln!("{name}: {:.1} s", begin.elapsed().as_secs_f32());
    result.map_err(failure)
}

fn failure(error: anyhow::Error) -> libtest_mimic::Failed {
    format!("{error:#}").into()
}
