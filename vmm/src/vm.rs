//! The KVM virtual machine: created from an open `/dev/kvm`, with memory, interrupt controllers, and the wiring of
//! devices to KVM's eventfds. Called by the builder. Knows nothing of what the guest runs.
//!
//! Order matters: memory slots come before the interrupt controllers and eventfds, because each later change of the
//! memory map waits for all readers of the I/O buses, which costs milliseconds.
#![allow(unsafe_code)]

use std::os::fd::{IntoRawFd, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_clock_data, kvm_enable_cap,
    kvm_irqchip, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    layout::{self, DeviceSlot},
    memory::GuestMemory,
    virtio::mmio::QUEUE_NOTIFY,
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
    /// Processors have more state than a template keeps of them.
    #[error(
        "processors of this host have {bytes} bytes of extended state, which is more than a template keeps: boot without \
         templates"
    )]
    ExtendedState {
        /// What KVM says.
        bytes: i32,
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

const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What KVM keeps of a machine beside its processors: the interrupt controllers, and the guest's clock.
#[derive(Default, Serialize, Deserialize)]
pub struct VmState {
    irqchips: [kvm_irqchip; IRQCHIPS.len()],
    clock: kvm_clock_data,
}

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
        vm.disable_performance_counters()?;
        vm.add_memory(memory)?;
        vm.fd.set_tss_address(layout::KVM_TSS as usize).map_err(failed("place the task state"))?;
        let identity_map = layout::KVM_IDENTITY_MAP;
        vm.fd.set_identity_map_address(identity_map).map_err(failed("place the identity map"))?;
        vm.fd.create_irq_chip().map_err(failed("create the interrupt controllers"))?;
        Ok(vm)
    }

    /// Takes the counters from processors that are made later. That they name none (`cpu::cpuid`) is enough
    /// for Intel's; KVM lets guests of AMD have the oldest four whatever their processors say.
    fn disable_performance_counters(&self) -> Result<(), VmError> {
        let offered = self.fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
        match without_performance_counters(offered) {
            Some(switch) => {
                self.fd.enable_cap(&switch).map_err(failed("take the performance counters from the guest"))
            }
            None => Ok(()),
        }
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

    /// Takes the state of the machine, whose processors are stopped.
    pub fn save(&self) -> Result<VmState, VmError> {
        let mut state =
            VmState { clock: self.fd.get_clock().map_err(failed("read the clock"))?, ..Default::default() };
        for (chip, id) in state.irqchips.iter_mut().zip(IRQCHIPS) {
            chip.chip_id = id;
            self.fd.get_irqchip(chip).map_err(failed("read the interrupt controllers"))?;
        }
        Ok(state)
    }

    /// Gives a new machine this state. Its clock goes on where it was stopped, however long ago that is.
    pub fn restore(&self, state: &VmState) -> Result<(), VmError> {
        for chip in &state.irqchips {
            self.fd.set_irqchip(chip).map_err(failed("set the interrupt controllers"))?;
        }
        // Without flags: one of them would add the time that has passed.
        let clock = kvm_clock_data { clock: state.clock.clock, ..Default::default() };
        self.fd.set_clock(&clock).map_err(failed("set the clock"))
    }

    /// Numbers of all model-specific registers that KVM keeps.
    pub fn msr_indices(&self) -> Result<Vec<u32>, VmError> {
        let list = self.kvm.get_msr_index_list().map_err(failed("list model-specific registers"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Refuses processors whose extended state is larger than `kvm_xsave`: its later parts would be lost.
    pub fn check_extended_state(&self) -> Result<(), VmError> {
        let bytes = self.fd.check_extension_int(Cap::Xsave2);
        if bytes > size_of::<kvm_xsave>() as i32 {
            return Err(VmError::ExtendedState { bytes });
        }
        Ok(())
    }

    /// Makes processor number `id` with these features. There is none without them: since Linux 6.13 model-specific registers
    /// that depend on a feature read as zero, and take no other value, until KVM has been told of it.
    pub fn create_vcpu(&self, id: u8, features: &CpuId) -> Result<VcpuFd, VmError> {
        let vcpu = self.fd.create_vcpu(u64::from(id)).map_err(failed("create a vcpu"))?;
        vcpu.set_cpuid2(features).map_err(failed("set the features of a vcpu"))?;
        Ok(vcpu)
    }

    /// Wires a device: writes of its queues' notify register signal `kicks`, and `interrupt` raises its line.
    pub fn wire(&self, slot: DeviceSlot, kicks: &[EventFd], interrupt: &EventFd) -> Result<(), VmError> {
        let notify = IoEventAddress::Mmio(slot.address() + QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(kicks) {
            self.fd.register_ioevent(kick, &notify, queue).map_err(failed("watch a queue"))?;
        }
        self.route(interrupt, slot.gsi())
    }

    /// Lets `event` raise interrupt line `gsi` for as long as it is open.
    pub fn route(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(event, gsi).map_err(failed("route an interrupt"))
    }
}

/// What takes the performance counters from a guest; none where KVM, which offers these bits, cannot (before
/// Linux 5.18).
fn without_performance_counters(offered: i32) -> Option<kvm_enable_cap> {
    let offers = offered > 0 && offered as u32 & KVM_PMU_CAP_DISABLE != 0;
    offers.then(|| kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    })
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
    use crate::memory::{self, Backing};
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn descriptor_that_is_not_kvm_is_refused() {
        let memory = memory::allocate(&layout::ram(64), Backing::Fresh { huge_pages: false }).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(Vm::new(file.into(), &memory), Err(VmError::Version { version: -1 })));
    }

    #[test]
    fn performance_counters_are_taken_where_kvm_offers_it() {
        for without in [-1, 0, 2] {
            assert!(without_performance_counters(without).is_none(), "{without}");
        }
        for with in [1, 3] {
            let switch = without_performance_counters(with).unwrap();
            assert_eq!((switch.cap, switch.flags, switch.args), (212, 0, [1, 0, 0, 0]));
        }
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
