//! Guest memory: one anonymous mapping of the host, aligned to 2 MiB so that KVM can use large pages, seen through
//! `vm-memory`. Called by the builder. It lives until the process ends: nothing ever unmaps it, so a device may hold a
//! reference for as long as it likes.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion, mmap::MmapRegionBuilder};

use crate::{
    layout::{self, Range},
    virtio::GuestMemory,
};

/// 2 MiB, the size of a large page.
const ALIGNMENT: usize = 2 << 20;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// Size asked for.
        bytes: usize,
        /// The system's answer.
        source: nix::Error,
    },
    /// The ranges do not make a guest memory.
    #[error("guest memory layout refused: {0}")]
    Region(String),
}

/// Allocates guest memory for `ranges`. Pages cost nothing until the guest touches them.
///
/// `huge_pages` asks for 2 MiB pages everywhere: a faster start that takes more memory. Without it they are asked for above
/// [`layout::IDLE_END`] and refused below, whatever the host's default: what an idle pod takes does not depend on the node's
/// settings, and what a busy one uses comes with one fault per 2 MiB.
pub fn allocate(ranges: &[Range], huge_pages: bool) -> Result<GuestMemory, MemoryError> {
    let bytes = ranges.iter().map(|r| r.len as usize).sum();
    let base = map_aligned(bytes)?;
    let mut offset = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for range in ranges {
        let len = range.len as usize;
        regions.push(region(base, offset, range.start, len)?);
        offset += len;
    }
    let memory = GuestMemory::from_regions(regions).map_err(|e| MemoryError::Region(e.to_string()))?;
    let first = if huge_pages { 0 } else { layout::IDLE_END };
    for range in ranges {
        let start = range.start.max(first);
        advise_huge_pages(&memory, Range { start, len: range.end().saturating_sub(start) });
    }
    Ok(memory)
}

/// Asks for the 2 MiB pages that lie wholly in `range`, one fault each: where the guest fills them anyway, they take no memory
/// more. A range outside guest memory gets none.
pub fn advise_huge_pages(memory: &GuestMemory, range: Range) {
    let first = range.start.next_multiple_of(ALIGNMENT as u64);
    let bytes = range.end().saturating_sub(first) as usize & !(ALIGNMENT - 1);
    let Ok(pages) = memory.get_slice(GuestAddress(first), bytes) else { return };
    let address = pages.ptr_guard_mut().as_ptr();
    // SAFETY: advice about the mapping of `map_aligned`, which covers the slice; it changes no byte. A kernel without large
    // pages refuses it, which is no failure.
    unsafe { libc::madvise(address.cast(), bytes, libc::MADV_HUGEPAGE) };
}

fn region(
    base: NonNull<u8>,
    offset: usize,
    start: u64,
    len: usize,
) -> Result<GuestRegionMmap<()>, MemoryError> {
    // SAFETY: `allocate` sums the lengths of all ranges for the mapping, so base + offset lies inside it.
    let pointer = unsafe { base.add(offset) };
    let builder = MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(MAP_FLAGS);
    // SAFETY: the mapping from `map_aligned` covers [pointer, pointer + len) and is never unmapped.
    let builder = unsafe { builder.with_raw_mmap_pointer(pointer.as_ptr()) };
    let region: MmapRegion = builder.build().map_err(|e| MemoryError::Region(e.to_string()))?;
    GuestRegionMmap::new(region, GuestAddress(start))
        .ok_or_else(|| MemoryError::Region(format!("range at {start:#x} overflows")))
}

const MAP_FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `bytes` at a multiple of 2 MiB by mapping more and giving the ends back. Its pages are small ones.
fn map_aligned(bytes: usize) -> Result<NonNull<u8>, MemoryError> {
    let failed = |source| MemoryError::Map { bytes, source };
    let padded = bytes.checked_add(ALIGNMENT).ok_or(failed(nix::Error::ENOMEM))?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), padded, libc::PROT_READ | libc::PROT_WRITE, MAP_FLAGS, -1, 0)
    };
    if start == libc::MAP_FAILED {
        return Err(failed(nix::Error::last()));
    }
    let lead = start.align_offset(ALIGNMENT);
    // SAFETY: lead is below ALIGNMENT, by which the mapping is longer than `bytes`.
    let base = unsafe { start.cast::<u8>().add(lead) };
    let tail = padded - lead - bytes;
    // SAFETY: base + bytes + tail is the end of the mapping.
    let end = unsafe { base.add(bytes) };
    for (address, len) in [(start, lead), (end.cast(), tail)] {
        if len != 0 {
            // SAFETY: both ends belong to the mapping made above and nobody has a reference to them.
            unsafe { libc::munmap(address, len) };
        }
    }
    // SAFETY: advice about a mapping of our own; a kernel without large pages refuses it, which is no failure.
    unsafe { libc::madvise(base.cast(), bytes, libc::MADV_NOHUGEPAGE) };
    // SAFETY: as above; guest memory must never appear in a core file.
    unsafe { libc::madvise(base.cast(), bytes, libc::MADV_DONTDUMP) };
    NonNull::new(base).ok_or(failed(nix::Error::EFAULT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryRegion};

    #[test]
    fn memory_is_aligned_to_2_mib() {
        let memory = allocate(&layout::ram(64), true).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host.align_offset(ALIGNMENT), 0);
    }

    #[test]
    fn huge_pages_are_asked_for_inside_a_range_only() {
        let memory = allocate(&layout::ram(64), false).unwrap();
        advise_huge_pages(&memory, Range { start: 5 << 20, len: 6 << 20 });
        // the advice parts the mapping where it begins and ends
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let parted_at = |mib: u64| {
            let address = memory.get_host_address(GuestAddress(mib << 20)).unwrap() as usize;
            maps.lines().any(|line| line.starts_with(&format!("{address:x}-")))
        };
        let parted: Vec<u64> = (1..64).filter(|&mib| parted_at(mib)).collect();
        assert_eq!(parted, [6, 10, layout::IDLE_END >> 20], "{maps}");
    }

    #[test]
    fn range_outside_memory_gets_no_huge_pages() {
        let memory = allocate(&layout::ram(64), false).unwrap();
        advise_huge_pages(&memory, Range { start: 48 << 20, len: 32 << 20 });
        advise_huge_pages(&memory, Range { start: 1 << 20, len: 0 });
    }

    #[test]
    fn memory_around_the_hole_can_be_used_and_the_hole_cannot() {
        let memory = allocate(&layout::ram(4096), false).unwrap();
        assert_eq!(memory.num_regions(), 2);
        assert_eq!(memory.iter().map(|r| r.len()).sum::<u64>(), 4 << 30);
        let last = GuestAddress(layout::HOLE_END + (1 << 30) - 8);
        memory.write_obj(0x1234_u64, last).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0x1234);
        assert!(memory.write_obj(1_u8, GuestAddress(layout::HOLE)).is_err());
    }
}
