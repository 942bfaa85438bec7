//! The size of a VM that runs: a pod's VM boots, or its template did, with its handler's usual memory, and has the rest added
//! (virtio-mem) before it is Ready; later it follows its pod's limits up and down, and so do its processors, up to its handler's
//! `max_vcpus`.
//!
//! Growing is waited for until the guest has taken what was added; its kernel has put the last of it to use some milliseconds
//! later. Shrinking memory is not waited for: the guest gives back what it can, when it can. Processors that are too many are
//! taken down in the guest and cost nothing then; the VMM keeps them for the next growth.

use super::record::Record;
use super::validate::{Size, size};
use super::{Machine, Sandbox, SandboxError, Sandboxes};
use crate::hypervisor::{Vm, most_memory_mib};
use crate::resources::Resources;
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
        resources: Option<&Resources>,
        overhead: Option<&Resources>,
    ) -> Result<(), SandboxError> {
        let wanted = self.size_for(sandbox, resources, overhead)?;
        let Record { size: (vcpus, _), max_vcpus, .. } = sandbox.snapshot();
        let most = max_vcpus.max(vcpus);
        if wanted.vcpus > most {
            let (id, wanted) = (sandbox.id.clone(), wanted.vcpus);
            return Err(SandboxError::TooManyVcpus { id, wanted, most });
        }
        let entered = sandbox.enter().await?;
        self.set_size(sandbox, &entered.machine, wanted).await
    }

    /// Has the VM hold containers that have these limits together. It never shrinks for that. The caller has entered the
    /// sandbox: to enter it once more while a stop waits would wait for that stop, and it for us.
    ///
    /// # Errors
    /// Where the guest does not take what was added.
    pub async fn make_room(
        &self,
        sandbox: &Sandbox,
        machine: &Machine,
        limits: &Resources,
    ) -> Result<(), SandboxError> {
        let wanted = self.size_for(sandbox, Some(limits), sandbox.spec.overhead.as_ref())?;
        let Record { size: (vcpus, memory_mib), max_vcpus, .. } = sandbox.snapshot();
        // Limits may be larger than what there is, and then are none. Where none is set, the wanted size is the handler's usual
        // one, which says nothing of these containers.
        let size = Size {
            vcpus: if limits.cpu_quota > 0 { wanted.vcpus.min(max_vcpus).max(vcpus) } else { vcpus },
            memory_mib: if limits.memory_limit_in_bytes > 0 {
                wanted.memory_mib.min(most_memory_mib()).max(memory_mib)
            } else {
                memory_mib
            },
        };
        if (size.vcpus, size.memory_mib) == (vcpus, memory_mib) {
            return Ok(());
        }
        self.set_size(sandbox, machine, size).await
    }

    fn size_for(
        &self,
        sandbox: &Sandbox,
        resources: Option<&Resources>,
        overhead: Option<&Resources>,
    ) -> Result<Size, SandboxError> {
        // A handler that is configured no more made this pod: its pods have what others have.
        let settings = self.config.vm_of(&sandbox.spec.handler).unwrap_or_else(|| self.config.vm.clone());
        Ok(size(&settings, resources, overhead)?)
    }

    async fn set_size(&self, sandbox: &Sandbox, machine: &Machine, size: Size) -> Result<(), SandboxError> {
        let (vcpus, _) = sandbox.snapshot().size;
        resize_vm(&sandbox.id, machine.vm.as_ref(), size.memory_mib).await?;
        if size.vcpus > vcpus {
            machine.vm.add_vcpus(size.vcpus).await?;
        }
        if size.vcpus != vcpus {
            machine.agent.use_processors(size.vcpus).await?;
        }
        self.change(sandbox, |record| record.size = (size.vcpus, size.memory_mib))
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
