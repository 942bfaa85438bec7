//! Memory beyond what a VM booted with: the region that is mapped for it, and how much of it the VM is asked to have.
//!
//! Called by the builder, which maps the region beside the memory of the boot, and by the machine for clients' requests. The
//! guest's side is [`crate::virtio::mem`]. What a boot can rely on is only the memory of the boot: nothing may place a kernel,
//! a table or a saved state into the region.

use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::{
    layout::Range,
    memory::{self, Backing, GuestMemory, MemoryError},
    virtio::{Counter, mem::Mem, mmio::MmioTransport},
};

const MIB: u64 = 1 << 20;

/// Maps `region` and returns guest memory with it. Its pages cost nothing until the guest touches them, and are large ones: it
/// is plugged and unplugged in pieces of that size.
///
/// # Errors
/// When the host refuses the mapping, or the region overlaps `memory`.
pub fn add(memory: &GuestMemory, region: Range) -> Result<GuestMemory, MemoryError> {
    let refused = |error: &dyn std::fmt::Display| MemoryError::Region(error.to_string());
    let alone = memory::allocate(&[region], Backing::Fresh { huge_pages: true })?;
    let (_, region) =
        alone.remove_region(GuestAddress(region.start), region.len).map_err(|error| refused(&error))?;
    memory.insert_region(region).map_err(|error| refused(&error))
}

/// A size that the VM cannot be asked to have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "memory_mib must be a multiple of 2 from {least} (what the vm booted with) to {most} (its max_memory_mib), got {value}"
)]
pub struct ResizeError {
    /// MiB at boot.
    pub least: u32,
    /// Most MiB.
    pub most: u32,
    /// What was asked for.
    pub value: u32,
}

/// How much memory a VM has and may have.
pub struct MemorySize {
    boot_mib: u32,
    max_mib: u32,
    /// None where a VM has all it may have.
    mem: Option<Arc<MmioTransport<Mem>>>,
    plugged: Counter,
}

impl MemorySize {
    /// Of a VM that booted with `boot_mib` MiB and may have up to `max_mib` by `mem`.
    pub fn new(boot_mib: u32, max_mib: u32, mem: Option<Arc<MmioTransport<Mem>>>) -> Self {
        let plugged = mem.as_ref().map(|mem| mem.with(|mem| mem.plugged_bytes())).unwrap_or_default();
        Self { boot_mib, max_mib, mem, plugged }
    }

    /// Asks the guest to have `memory_mib` MiB in all. It follows as far as it can, see [`Self::bytes`].
    ///
    /// # Errors
    /// When the VM cannot have so much, or so little.
    pub fn resize(&self, memory_mib: u32) -> Result<(), ResizeError> {
        let (least, most) = (self.boot_mib, self.max_mib);
        if !memory_mib.is_multiple_of(2) || !(least..=most).contains(&memory_mib) {
            return Err(ResizeError { least, most, value: memory_mib });
        }
        if let Some(mem) = &self.mem {
            mem.with(|mem| mem.request(u64::from(memory_mib - least) * MIB));
            mem.interrupt().config_changed();
        }
        Ok(())
    }

    /// What the VM has now, in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.boot_mib) * MIB + self.plugged.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layout,
        virtio::{VirtioDevice, testing::Rig},
    };
    use vm_memory::{Bytes, GuestMemoryBackend};

    const FRESH: Backing<'static> = Backing::Fresh { huge_pages: false };

    #[test]
    fn region_is_guest_memory_of_large_pages() {
        let region = layout::pluggable(64, 200).unwrap();
        let memory = add(&memory::allocate(&layout::ram(64), FRESH).unwrap(), region).unwrap();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7_u64, GuestAddress(region.end() - 8)).unwrap();
        let host = memory.get_host_address(GuestAddress(region.start)).unwrap();
        assert_eq!(host.align_offset(2 << 20), 0);
    }

    #[test]
    fn region_over_other_memory_is_refused() {
        let memory = memory::allocate(&layout::ram(64), FRESH).unwrap();
        assert!(matches!(add(&memory, Range { start: 32 << 20, len: 2 << 20 }), Err(MemoryError::Region(_))));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let rig = Rig::running(|_| Mem::new(layout::pluggable(64, 256).unwrap()));
        let size = MemorySize::new(64, 256, Some(rig.transport.clone()));
        for value in [0, 62, 65, 257, 258, u32::MAX] {
            assert_eq!(size.resize(value), Err(ResizeError { least: 64, most: 256, value }));
        }
        let asked = || rig.transport.with(|mem| mem.save()).requested_bytes;
        for (memory_mib, more) in [(256, 192), (66, 2), (64, 0)] {
            size.resize(memory_mib).unwrap();
            assert_eq!(asked(), more * MIB);
        }
        assert_eq!(size.bytes(), 64 * MIB);
    }

    #[test]
    fn boot_memory_that_is_odd_leaves_whole_blocks() {
        let rig = Rig::running(|_| Mem::new(layout::pluggable(65, 256).unwrap()));
        let size = MemorySize::new(65, 256, Some(rig.transport.clone()));
        size.resize(128).unwrap();
        assert_eq!(rig.transport.with(|mem| mem.save()).requested_bytes, 62 * MIB);
    }

    #[test]
    fn vm_of_one_size_has_that_size() {
        let size = MemorySize::new(128, 128, None);
        assert_eq!(size.resize(128), Ok(()));
        assert!(size.resize(130).is_err());
        assert_eq!(size.bytes(), 128 * MIB);
    }
}
