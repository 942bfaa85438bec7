//! StopPodSandbox and RemovePodSandbox: the VM goes, then everything that it used. All of it may be repeated, at any
//! moment and by several callers at once.

use super::{Sandbox, SandboxError, Sandboxes, State};
use crate::undo::Steps;
use std::fs;
use std::io;
use std::sync::Arc;

impl Sandboxes {
    /// From here on nobody can enter the sandbox. One that has been stopped stays so.
    ///
    /// # Errors
    /// Where the record cannot be written.
    pub fn begin_stop(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        self.change(sandbox, |record| {
            if record.state != State::Stopped {
                record.state = State::Stopping;
            }
        })
    }

    /// Kills the VM and releases all that the sandbox holds but its record. The caller has begun the stop.
    ///
    /// # Errors
    /// What stays; the sandbox is Stopping then, and calling again tries again.
    pub async fn stop(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
        let (sandboxes, taken_down) = (Arc::clone(self), Arc::clone(sandbox));
        // A task of its own: a caller that leaves must not kill a CNI plugin half-way.
        let work = tokio::spawn(async move { sandboxes.take_down(&taken_down).await });
        work.await.unwrap_or_else(|_| Err(SandboxError::GoingDown(sandbox.id.clone())))
    }

    async fn take_down(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let steps = Steps::new("StopPodSandbox");
        self.begin_stop(sandbox)?;
        steps.done("begin")?;
        // Killed before we wait for those inside: their calls to the agent fail now. Taking the guest's memory apart
        // takes the kernel a while, which the network's teardown uses.
        let killed = async {
            match sandbox.machine.get() {
                Some(machine) => machine.vm.kill().await,
                // Half made, or not found again: what runs of it runs in its cgroup.
                None => sandbox.cgroup.kill()?,
            }
            sandbox.vm_has_ended();
            Ok::<_, SandboxError>(steps.done("vm")?)
        };
        let released = async {
            let alone = sandbox.gate.write().await;
            self.host.networks.remove(&sandbox.id).await?;
            steps.done("network")?;
            Ok::<_, SandboxError>(alone)
        };
        let (killed, released) = tokio::join!(killed, released);
        let _alone = released?;
        killed?;
        if sandbox.state() == State::Stopped {
            return Ok(());
        }
        sandbox.cgroup.remove().await?;
        steps.done("cgroup")?;
        match fs::remove_dir_all(&sandbox.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(sandbox.file_error("vm directory", &sandbox.directory)(error));
            }
            _ => {}
        }
        steps.done("directory")?;
        self.change(sandbox, |record| record.state = State::Stopped)?;
        steps.done("record")?;
        tracing::info!(sandbox = sandbox.id, "pod sandbox is stopped");
        Ok(())
    }

    /// Forgets a sandbox that has been stopped.
    ///
    /// # Errors
    /// Where its record cannot be removed, or it has not been stopped.
    pub async fn remove(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let _alone = sandbox.gate.write().await;
        match sandbox.state() {
            State::Stopped => self.forget(sandbox),
            state => Err(SandboxError::NotReady { id: sandbox.id.clone(), state }),
        }
    }
}
