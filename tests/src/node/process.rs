//! A process that does not outlive the one that started it.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

/// Killed and reaped when dropped; killed by the kernel when the thread that spawned it ends in any other way.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// A command for [`Process::spawn`]. Debian's `setpriv` asks for the death signal: that call is unsafe in Rust.
    pub fn command(program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Starts what [`Process::command`] began. The calling thread must live as long as the process shall.
    pub fn spawn(command: &mut Command) -> Result<Process> {
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Process(child))
    }

    /// Its status if it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.0.try_wait().context("cannot wait for a child")
    }

    /// Ends it; returns when it is gone.
    pub fn kill(&mut self) {
        // fails only for a child that is already gone
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
