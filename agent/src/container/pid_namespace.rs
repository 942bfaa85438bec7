//! The pid namespace that containers of the pod may share, made when the first of them asks for it.

use super::launch::{LaunchError, launch};
use crate::child::message::ChildRequest;
use crate::event_loop::blocking;
use crate::reaper::{ProcessHandle, Reaper};
use std::fs::File;
use std::os::fd::OwnedFd;
use tokio::sync::Mutex;

/// The namespace, held by a process that does nothing but collect orphans ([`crate::child`]). It lives as
/// long as the VM.
#[derive(Debug, Default)]
pub struct PodPidNamespace {
    holder: Mutex<Option<ProcessHandle>>,
}

impl PodPidNamespace {
    /// The namespace as a descriptor. One whose holder was killed has ended with all that lived in it: a new
    /// one is made.
    pub async fn join(&self, reaper: &Reaper) -> Result<OwnedFd, LaunchError> {
        let mut holder = self.holder.lock().await;
        if let Some(namespace) = holder.as_ref().and_then(of) {
            return Ok(namespace);
        }
        let launched = {
            let reaper = reaper.clone();
            blocking(move || launch(&reaper, &ChildRequest::PidNamespace, &[])).await?
        };
        let namespace = of(&launched.process).ok_or(LaunchError::Child {
            action: "kept: the holder of the pod's pid namespace has ended",
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        *holder = Some(launched.process);
        Ok(namespace)
    }
}

/// The pid namespace of a process; none when it has ended.
pub fn of(process: &ProcessHandle) -> Option<OwnedFd> {
    let namespace = File::open(format!("/proc/{}/ns/pid", process.pid())).ok()?;
    // Alive after the look: so it was this process's, and not that of another one with its number.
    (!process.has_ended()).then(|| namespace.into())
}
