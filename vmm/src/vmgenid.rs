//! The VM's generation: 16 random bytes in guest memory that are others in every copy of a VM. The guest
//! finds them by ACPI (`acpi.rs`); where they change, Linux reseeds its random numbers before it gives out
//! another.
//!
//! ```text
//! new bytes at layout::VMGENID, then the event -> KVM raises layout::VMGENID_GSI
//!        -> generic event device: _EVT -> Notify(VGEN) -> Linux compares the bytes, add_vmfork_randomness
//! ```
//!
//! Made by whoever makes a machine: the builder at a boot, where nobody needs to be told, and the maker of a
//! clone, who calls [`VmGenId::signal`] once the clone's interrupt controllers are as they were saved. It
//! must never write the same bytes twice, so they come from the host's `getrandom` and are not part of any
//! saved state.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{layout, memory::GuestMemory, virtio::sys};

/// Why there is no generation.
#[derive(Debug, thiserror::Error)]
pub enum VmGenIdError {
    /// Guest memory does not reach its place.
    #[error("cannot write the vm's generation into guest memory")]
    Write(#[from] GuestMemoryError),
    /// The host has no random bytes.
    #[error("cannot take random bytes for the vm's generation")]
    Random(#[source] io::Error),
    /// The host has no eventfd.
    #[error("cannot make the event of the vm's generation")]
    Event(#[source] io::Error),
}

/// The generation of one VM. KVM lets go of the interrupt when this is dropped: it lives as long as the guest
/// runs.
pub struct VmGenId {
    memory: GuestMemory,
    changed: EventFd,
}

impl VmGenId {
    /// Writes a generation that no VM had before into `memory`. The guest is not told.
    ///
    /// # Errors
    /// When the host cannot give what it takes.
    pub fn new(memory: &GuestMemory) -> Result<Self, VmGenIdError> {
        let changed = EventFd::new(EFD_NONBLOCK).map_err(VmGenIdError::Event)?;
        let vmgenid = Self { memory: memory.clone(), changed };
        vmgenid.write()?;
        Ok(vmgenid)
    }

    /// The event to route to [`layout::VMGENID_GSI`].
    pub fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// Tells the guest to look at its generation. Linux does nothing where it is the one it knows.
    pub fn signal(&self) {
        // Fails only when the counter is full, and then the interrupt is on its way.
        let _ = self.changed.write(1);
    }

    fn write(&self) -> Result<(), VmGenIdError> {
        let place = self.memory.get_slice(GuestAddress(layout::VMGENID), layout::VMGENID_SIZE)?;
        let written = sys::random(&place).map_err(VmGenIdError::Random)?;
        if written < layout::VMGENID_SIZE {
            return Err(VmGenIdError::Random(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, Backing};
    use vm_memory::Bytes;

    fn bytes(memory: &GuestMemory) -> u128 {
        memory.read_obj(GuestAddress(layout::VMGENID)).unwrap()
    }

    #[test]
    fn new_vm_has_a_generation_and_is_not_told() {
        let memory = memory::allocate(&layout::ram(64), Backing::Fresh { huge_pages: false }).unwrap();
        let vmgenid = VmGenId::new(&memory).unwrap();
        assert_ne!(bytes(&memory), 0);
        assert!(vmgenid.changed().read().is_err(), "the event is pending");
    }

    #[test]
    fn clone_gets_a_generation_of_its_own() {
        let memory = memory::allocate(&layout::ram(64), Backing::Fresh { huge_pages: false }).unwrap();
        let _template = VmGenId::new(&memory).unwrap();
        let before = bytes(&memory);
        let clone = VmGenId::new(&memory).unwrap();
        assert_ne!(bytes(&memory), before);
        clone.signal();
        assert_eq!(clone.changed().read().unwrap(), 1);
    }

    #[test]
    fn memory_that_does_not_reach_it_is_refused() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        assert!(matches!(VmGenId::new(&memory), Err(VmGenIdError::Write(_))));
    }
}
