//! The KVM virtual machine: created from an open `/dev/kvm`, with memory, interrupt controllers, and the wiring of
//! devices to KVM's eventfds. Called by the builder. Knows nothing of what the guest runs.
//!
//! Order matters: memory slots come before the interrupt controllers and eventfds, because each later change of the
//! memory map waits for all readers of the I/O buses, which costs milliseconds.
#![allow(unsafe_code)]

use std::os::fd::{IntoRawFd, OwnedFd};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    layout::{self, DeviceSlot},
    virtio::{GuestMemory, mmio::QUEUE_NOTIFY},
};

/// A step that KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The descriptor is no KVM, or another KVM than ours.
    #[error(
        "the first descriptor is not /dev/kvm with api version {KVM_API_VERSION} (it answered {version}); \
         give an open /dev/kvm"
    )]
    Version {
        /// What it answered; -1 if it does not know the question.
        version: i32,
    },
    /// KVM lacks something that the machine needs.
    #[error("kvm on this host lacks {capability:?}; a newer host kernel has it")]
    Capability {
        /// What is missing.
        capability: Cap,
    },
    /// An ioctl failed.
    #[error("kvm cannot {step}")]
    Ioctl {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: kvm_ioctls::Error,
    },
    /// Guest memory reaches further than the processor's addresses.
    #[error(
        "guest memory ends at {end:#x}, which is beyond this processor's {bits} address bits; take less memory"
    )]
    AddressBits {
        /// End of guest memory.
        end: u64,
        /// Physical address bits.
        bits: u8,
    },
}

/// Names the step of a failed ioctl.
fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Ioctl { step, source }
}

const NEEDED: [Cap; 6] =
    [Cap::Irqchip, Cap::Irqfd, Cap::Ioeventfd, Cap::UserMemory, Cap::TscDeadlineTimer, Cap::ImmediateExit];

/// A virtual machine.
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
}

impl Vm {
    /// Makes a VM with `memory` and interrupt controllers, without processors.
    pub fn new(kvm: OwnedFd, memory: &GuestMemory) -> Result<Self, VmError> {
        let kvm = open(kvm)?;
        let fd = kvm.create_vm().map_err(failed("create a vm"))?;
        let vm = Self { kvm, fd };
        vm.add_memory(memory)?;
        vm.fd.set_tss_address(layout::KVM_TSS as usize).map_err(failed("place the task state"))?;
        let identity_map = layout::KVM_IDENTITY_MAP;
        vm.fd.set_identity_map_address(identity_map).map_err(failed("place the identity map"))?;
        vm.fd.create_irq_chip().map_err(failed("create the interrupt controllers"))?;
        Ok(vm)
    }

    fn add_memory(&self, memory: &GuestMemory) -> Result<(), VmError> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: `memory::allocate` maps every region for the life of the process, so the guest can reach nothing
            // else through this slot. Regions do not overlap: `GuestMemory` refuses those that do.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(failed("give the guest its memory"))?;
        }
        Ok(())
    }

    /// What KVM lets this host's guests have.
    pub fn supported_cpuid(&self) -> Result<CpuId, VmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("list processor features"))
    }

    /// Makes processor number `id`.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, VmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(failed("create a vcpu"))
    }

    /// Wires a device: writes of its queues' notify register signal `kicks`, and `interrupt` raises its line.
    pub fn wire(&self, slot: DeviceSlot, kicks: &[EventFd], interrupt: &EventFd) -> Result<(), VmError> {
        let notify = IoEventAddress::Mmio(slot.address() + QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(kicks) {
            self.fd.register_ioevent(kick, &notify, queue).map_err(failed("watch a queue"))?;
        }
        self.fd.register_irqfd(interrupt, slot.gsi()).map_err(failed("route an interrupt"))
    }
}

fn open(fd: OwnedFd) -> Result<Kvm, VmError> {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is owned and handed over; that it is a KVM is checked next, before anything relies on it.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(VmError::Version { version });
    }
    match NEEDED.into_iter().find(|capability| !kvm.check_extension(*capability)) {
        Some(capability) => Err(VmError::Capability { capability }),
        None => Ok(kvm),
    }
}

/// Refuses memory that the processors of `supported` cannot address.
pub fn check_address_bits(supported: &CpuId, end: u64) -> Result<(), VmError> {
    const DEFAULT_BITS: u8 = 36;
    let leaf = supported.as_slice().iter().find(|e| e.function == 0x8000_0008);
    let bits = leaf.map_or(DEFAULT_BITS, |e| e.eax as u8);
    if bits < 64 && end > 1 << bits {
        return Err(VmError::AddressBits { end, bits });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn descriptor_that_is_not_kvm_is_refused() {
        let memory = memory::allocate(&layout::ram(64), false).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(Vm::new(file.into(), &memory), Err(VmError::Version { version: -1 })));
    }

    #[test]
    fn memory_beyond_the_address_bits_is_refused() {
        let leaf = kvm_cpuid_entry2 { function: 0x8000_0008, eax: 0x3028, ..Default::default() };
        let cpuid = CpuId::from_entries(&[leaf]).unwrap();
        assert!(check_address_bits(&cpuid, 1 << 40).is_ok());
        let refused = check_address_bits(&cpuid, (1 << 40) + 1);
        assert!(matches!(refused, Err(VmError::AddressBits { bits: 40, .. })));
    }
}
