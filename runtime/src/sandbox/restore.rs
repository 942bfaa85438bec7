//! What a starting daemon does with what an earlier one left, whichever moment that one was killed at: sandboxes whose VMs
//! run are taken back, those whose VMs ended are Lost, half-made ones are undone, and what nobody knows is removed.

use super::watch::tell;
use super::{Machine, Sandbox, SandboxError, SandboxEvent, Sandboxes, State};
use crate::agent_client::AgentClient;
use crate::cgroup;
use futures_util::future::join_all;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

impl Sandboxes {
    /// Takes back what there is. Called once, before the door opens.
    ///
    /// # Errors
    /// Only where the records cannot be read: what goes wrong with one sandbox does not keep the others from coming back.
    pub async fn restore(self: &Arc<Self>) -> Result<(), SandboxError> {
        let loaded = self.load()?;
        for path in &loaded.corrupt {
            tracing::error!(
                path = %path.display(),
                "pod sandbox is not taken back: its record cannot be read; what runs of it is ended"
            );
        }
        let sandboxes = self.all();
        let restored = sandboxes.iter().map(|sandbox| async move {
            match sandbox.state() {
                State::Starting => self.undo_half_made(sandbox).await,
                State::Ready => self.take_back(sandbox).await,
                State::Lost | State::Stopping | State::Stopped => self.gone(sandbox).await,
            }
        });
        // At the same time: one VMM that its guest keeps from answering must not delay the others.
        join_all(restored).await;
        self.remove_strangers(&loaded.corrupt).await;
        self.adopt_users()
    }

    /// Frees the host users of sandboxes that are gone. Where a cgroup of one could not be removed its VMM
    /// may still run, and its user is given to nobody.
    fn adopt_users(&self) -> Result<(), SandboxError> {
        let held = self.all().iter().map(|sandbox| (sandbox.snapshot().uid, sandbox.id.clone())).collect();
        let cgroups = cgroup::find_all(&self.host.cgroup_root);
        Ok(self.host.users.adopt(&held, |owner| {
            cgroups.as_ref().map_or(true, |left| left.iter().any(|(id, _)| id == owner))
        })?)
    }

    async fn take_back(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let record = sandbox.snapshot();
        let adopted = match &record.vm {
            Some(vm) => self.host.hypervisor.adopt(&sandbox.id, vm).await,
            None => Ok(None),
        };
        match adopted {
            Ok(Some(vm)) => {
                let agent = AgentClient::new(&sandbox.id, Arc::clone(&vm));
                // The only one who sets it: the door is closed still.
                let _ = sandbox.machine.set(Machine { vm, agent });
                self.watch(sandbox);
                tracing::info!(sandbox = sandbox.id, "pod sandbox is taken back");
                return;
            }
            Ok(None) => tracing::warn!(sandbox = sandbox.id, "its vm ended while no daemon ran"),
            Err(error) => {
                tracing::error!(sandbox = sandbox.id, %error, "its vm does not answer and is killed");
                if let Err(error) = sandbox.cgroup.kill() {
                    tracing::error!(sandbox = sandbox.id, %error, "its vm cannot be killed");
                }
            }
        }
        self.mark_lost(sandbox);
        self.gone(sandbox).await;
    }

    async fn gone(&self, sandbox: &Sandbox) {
        tell(&self.open_queue(sandbox), SandboxEvent::Gone).await;
    }

    /// Nobody was told of it, so it goes; where that fails it stays as Stopping, for kubelet to stop.
    async fn undo_half_made(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        tracing::info!(sandbox = sandbox.id, "pod sandbox was half made and is undone");
        let undone = match self.stop(sandbox).await {
            Ok(()) => self.remove(sandbox).await,
            Err(error) => Err(error),
        };
        if let Err(error) = undone {
            tracing::error!(sandbox = sandbox.id, %error, "half-made pod sandbox cannot be undone");
        }
    }

    /// Removes what carries our mark and belongs to no sandbox. A cgroup in use is killed only where its record is known
    /// to have been lost: another daemon's pods may be on this machine.
    async fn remove_strangers(&self, corrupt: &[PathBuf]) {
        let known: HashSet<String> = self.all().iter().map(|sandbox| sandbox.id.clone()).collect();
        let ours: HashSet<&str> =
            corrupt.iter().filter_map(|path| path.file_stem().and_then(OsStr::to_str)).collect();
        let cgroups = cgroup::find_all(&self.host.cgroup_root).unwrap_or_else(|error| {
            tracing::error!(%error, "cgroups cannot be listed");
            Vec::new()
        });
        for (id, cgroup) in cgroups.into_iter().filter(|(id, _)| !known.contains(id)) {
            let removed = match ours.contains(id.as_str()) {
                true => cgroup.remove().await.is_ok(),
                false => fs::remove_dir(cgroup.path()).is_ok(),
            };
            tracing::warn!(cgroup = %cgroup.path().display(), removed, "cgroup of no pod");
        }
        match self.host.networks.known() {
            Err(error) => tracing::error!(%error, "networks cannot be listed"),
            Ok(ids) => {
                for id in ids.iter().filter(|id| !known.contains(*id)) {
                    let removed = self.host.networks.remove(id).await;
                    tracing::warn!(sandbox = id, ?removed, "network of no pod");
                }
            }
        }
        if let Err(error) = self.remove_strange_directories(&known) {
            tracing::error!(%error, "vm directories cannot be cleaned");
        }
    }

    fn remove_strange_directories(&self, known: &HashSet<String>) -> io::Result<()> {
        let entries = match fs::read_dir(self.vm_directories()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|id| !known.contains(id)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}
