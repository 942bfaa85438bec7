//! What a pod costs the node: its cgroup's figures, which come from the host's kernel, and its network
//! card's, which come from its VMM.
//!
//! Called by `cri`. A VMM may be in the hands of its guest, or wait for a disk: it has a short time to
//! answer, and its figures are left out where it does not. The cgroup's never are: by them kubelet evicts a
//! pod that uses too much.

use super::{Sandbox, SandboxError};
use crate::cgroup::Usage;
use crate::wall_clock::now_ns;
use isopod_protocols::vmm::Stats;
use std::time::Duration;
use tokio::time::timeout;

/// Time that a VMM has to answer, as long as an agent has for the figures of its containers.
const LIMIT: Duration = Duration::from_secs(2);

/// What a pod has used since it began.
#[derive(Debug, Clone)]
pub struct PodUsage {
    /// When that was read, nanoseconds since the epoch.
    pub at_ns: i64,
    /// By the host's accounting.
    pub cgroup: Usage,
    /// The VMM's counters; absent where it did not answer in time.
    pub vm: Option<Stats>,
}

impl Sandbox {
    /// Reads what it has used; takes at most two seconds.
    ///
    /// # Errors
    /// [`SandboxError::NotReady`] in every state but Ready, [`SandboxError::Cgroup`] where its cgroup has
    /// gone.
    pub async fn usage(&self) -> Result<PodUsage, SandboxError> {
        let vm = self.vm_stats().await?;
        Ok(PodUsage { at_ns: now_ns(), cgroup: self.cgroup.usage()?, vm })
    }

    /// Asks its VMM for its counters; `None` where it does not answer within two seconds.
    ///
    /// # Errors
    /// [`SandboxError::NotReady`] in every state but Ready.
    pub async fn vm_stats(&self) -> Result<Option<Stats>, SandboxError> {
        let machine = self.machine()?;
        let failure = match timeout(LIMIT, machine.vm.stats()).await {
            Ok(Ok(stats)) => return Ok(Some(stats)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", LIMIT.as_secs()),
        };
        // One that is being stopped has no figures any more.
        self.machine()?;
        tracing::warn!(sandbox = self.id, failure, "figures of its vmm are left out");
        Ok(None)
    }
}
