//! Containers: processes with a root of their own in a sandbox's guest.
//!
//! Called by `cri`. How they hang on sandboxes is told in [`crate::sandbox`]. So far there are none: CreateContainer
//! answers Unimplemented, and the two calls below, by which sandboxes are taken down, find nothing to do.

pub mod log;
pub mod resources;
mod seccomp;
pub mod security;
pub mod spec;
pub mod stdio;

use crate::sandbox::{Sandbox, SandboxEvent};
use std::sync::Arc;
use tokio::sync::mpsc;

/// All containers of the node.
#[derive(Debug, Default)]
pub struct Containers {}

impl Containers {
    /// An empty table; `events` are what happens to sandboxes.
    pub fn new(mut events: mpsc::Receiver<SandboxEvent>) -> Arc<Self> {
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        Arc::new(Self::default())
    }

    /// Kills all containers of a sandbox that is being stopped, and waits, within bounds, until what they wrote is in
    /// their logs. The VM is killed next, whatever happened here.
    pub async fn kill_all(&self, _sandbox: &Sandbox) {}

    /// Removes all containers of a sandbox that has been stopped, and is about to be removed.
    pub async fn remove_all(&self, _sandbox: &Sandbox) {}
}
