//! The memory of a VM that runs: a pod's VM boots, or its template did, with its handler's usual memory, and has the rest added
//! (virtio-mem) before it is Ready; later it follows its pod's limits up and down.
//!
//! Growing is waited for until the guest has taken what was added; its kernel has put the last of it to use some milliseconds
//! later. Shrinking is not waited for: the guest gives back what it can, when it can.
//! Processors stay as many as they are: a pod that wants more of them is refused.

use super::validate::{Size, size};
use super::{Machine, Sandbox, SandboxError, Sandboxes};
use crate::hypervisor::{Vm, most_memory_mib};
use k8s_cri::v1::LinuxContainerResources;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a guest may take to use memory that was added.
const LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(5);

impl Sandboxes {
    /// UpdatePodSandboxResources: new limits of the pod as a whole.
    ///
    /// # Errors
    /// Where the VM cannot have that size, or the guest does not take what was added.
    pub async fn resize(
        &self,
        sandbox: &Sandbox,
        resources: Option<&LinuxContainerResources>,
        overhead: Option<&LinuxContainerResources>,
    ) -> Result<(), SandboxError> {
        let wanted = self.size_for(sandbox, resources, overhead)?;
        let (vcpus, _) = sandbox.snapshot().size;
        if wanted.vcpus > vcpus {
            return Err(SandboxError::VcpusFixed {
                id: sandbox.id.clone(),
                wanted: wanted.vcpus,
                have: vcpus,
            });
        }
        let entered = sandbox.enter().await?;
        self.set_memory(sandbox, &entered.machine, wanted.memory_mib).await
    }

    /// Has the VM hold containers whose limits are `bytes` together. It never shrinks for that. The caller has entered the
    /// sandbox: to enter it once more while a stop waits would wait for that stop, and it for us.
    ///
    /// # Errors
    /// Where the guest does not take what was added.
    pub async fn make_room(
        &self,
        sandbox: &Sandbox,
        machine: &Machine,
        bytes: i64,
    ) -> Result<(), SandboxError> {
        let limits = LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
        let linux = sandbox.config.linux.clone().unwrap_or_default();
        let wanted = self.size_for(sandbox, Some(&limits), linux.overhead.as_ref())?;
        // Limits may be larger than the node, and then are none.
        let memory_mib = wanted.memory_mib.min(most_memory_mib());
        if memory_mib > sandbox.snapshot().size.1 {
            self.set_memory(sandbox, machine, memory_mib).await
        } else {
            Ok(())
        }
    }

    fn size_for(
        &self,
        sandbox: &Sandbox,
        resources: Option<&LinuxContainerResources>,
        overhead: Option<&LinuxContainerResources>,
    ) -> Result<Size, SandboxError> {
        // A handler that is configured no more made this pod: its pods have what others have.
        let settings = self.config.vm_of(&sandbox.handler).unwrap_or_else(|| self.config.vm.clone());
        Ok(size(&settings, resources, overhead)?)
    }

    async fn set_memory(
        &self,
        sandbox: &Sandbox,
        machine: &Machine,
        memory_mib: u32,
    ) -> Result<(), SandboxError> {
        resize_vm(&sandbox.id, machine.vm.as_ref(), memory_mib).await?;
        self.change(sandbox, |record| record.size.1 = memory_mib)
    }
}

/// Asks a VM to have that much memory in all, and waits until it has at least that.
pub(super) async fn resize_vm(id: &str, vm: &dyn Vm, memory_mib: u32) -> Result<(), SandboxError> {
    vm.resize(memory_mib).await?;
    let (begun, wanted) = (Instant::now(), u64::from(memory_mib) << 20);
    loop {
        let have = vm.stats().await?.memory_bytes;
        if have >= wanted {
            return Ok(());
        }
        if begun.elapsed() > LIMIT {
            return Err(SandboxError::NoGrowth {
                id: id.to_owned(),
                wanted_mib: memory_mib,
                have_mib: have >> 20,
                seconds: LIMIT.as_secs(),
            });
        }
        sleep(PAUSE).await;
    }
}
