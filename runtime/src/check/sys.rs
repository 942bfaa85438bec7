//! The one call of `check` that has no safe wrapper: giving a VM its memory.
#![allow(unsafe_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Makes `memory` the memory of `vm`, which must not outlive it.
///
/// # Errors
/// Of KVM_SET_USER_MEMORY_REGION.
pub fn give_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let address =
            memory.get_host_address(region.start_addr()).map_err(|_| kvm_ioctls::Error::new(libc::EFAULT))?;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: address as u64,
        };
        // SAFETY: the range is a mapping that `memory` owns; the probe, which is the only caller, drops the VM first.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    Ok(())
}
