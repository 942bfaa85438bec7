//! Operations on a whole pod: its sandbox together with the containers in it.
//!
//! Called by `cri`. `sandbox` knows no containers, and `container` takes no sandbox down: what needs both in
//! a certain order is here, once, for whoever serves a client.

mod stats;

pub use stats::{ContainerUsage, PodStats};

use crate::container::Containers;
use crate::sandbox::{Sandbox, SandboxError, Sandboxes};
use std::sync::Arc;

/// The pods of a node.
#[derive(Clone)]
pub struct Pods {
    sandboxes: Arc<Sandboxes>,
    containers: Arc<Containers>,
}

impl Pods {
    /// Those of these sandboxes, with these containers in them.
    pub fn new(sandboxes: Arc<Sandboxes>, containers: Arc<Containers>) -> Self {
        Self { sandboxes, containers }
    }

    /// Takes a sandbox down with all that runs in it: containers, VM and network go, the records stay. One
    /// that is stopped stays so.
    ///
    /// # Errors
    /// What stays; calling again tries again.
    pub async fn stop(&self, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
        self.sandboxes.begin_stop(sandbox)?;
        self.containers.kill_all(sandbox).await;
        self.sandboxes.stop(sandbox).await
    }

    /// Forgets a sandbox and its containers, after a stop where that is needed.
    ///
    /// # Errors
    /// What stays; calling again tries again.
    pub async fn remove(&self, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
        self.stop(sandbox).await?;
        self.containers.remove_all(sandbox).await;
        self.sandboxes.remove(sandbox).await
    }
}
