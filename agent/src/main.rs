//! One binary, two programs.
//!
//! Started by the kernel as PID 1 it is the agent: [`init`] makes the guest fit to live in, [`server`] answers the runtime.
//! Started by the agent itself with `container-child` it is the one-shot, single-threaded child that makes a container
//! ([`container::child`]), because the container library changes the process that calls it. Which of the two is decided
//! here, before any runtime or thread exists.

mod cgroup;
mod clock;
mod console;
mod container;
mod directory;
mod error;
mod id;
mod identity;
#[cfg(test)]
mod in_guest;
mod init;
mod network;
mod process;
mod processors;
mod reaper;
mod sandbox;
mod server;
mod stats;
mod stdio;
mod storage;
mod sys;
mod sysctl;
mod tasks;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The kernel hands words of its command line that it does not know to PID 1 as arguments: they must not choose.
    if std::process::id() == 1 {
        init::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(container::child::COMMAND) => container::child::run(),
        _ => {
            eprintln!("isopod-agent is the init of an Isopod guest and does nothing when started by hand");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    /// In release builds too: the profiles in the workspace's `Cargo.toml` say so.
    #[test]
    fn number_that_does_not_fit_is_a_panic() {
        let (most, one) = (std::hint::black_box(u8::MAX), std::hint::black_box(1));
        assert!(std::panic::catch_unwind(|| most + one).is_err());
    }
}
