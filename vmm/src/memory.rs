//! Guest memory: one mapping of the host, aligned to 2 MiB so that KVM can use large pages, seen through
//! `vm-memory`. Called by the builder and by `restore`. It lives until the process ends: nothing ever unmaps
//! it, so a device may hold a reference for as long as it likes.
//!
//! ```text
//!  a pod that boots     anonymous                     pages of zeroes, large ones where containers work
//!  a template           the daemon's file, shared     what the guest writes is the template
//!  a clone              the file, private             pages are the template's until they are written
//!                       anonymous where the file is   as in a pod that boots
//!                       empty
//! ```
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::NonNull,
};

use nix::unistd::{Whence, lseek64};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion, mmap::MmapRegionBuilder};

use crate::layout::{self, Range};

/// Guest memory, without dirty tracking.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// 2 MiB, the size of a large page in bytes.
pub const LARGE_PAGE: usize = 2 << 20;

/// `linux/mman.h`; the libc crate does not have it for this target.
const MADV_COLLAPSE: i32 = 25;

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
    /// The file does not have the size of the memory.
    #[error("the memory file has {have} bytes where the guest's memory has {need}")]
    FileSize {
        /// Its size.
        have: u64,
        /// What it must be.
        need: usize,
    },
    /// The host gives no pages.
    #[error("cannot have {bytes} bytes of guest memory populated (Linux 5.14 can)")]
    Populate {
        /// Size asked for.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// The file cannot be examined.
    #[error("cannot examine the memory file")]
    File(#[source] io::Error),
    /// The ranges do not make a guest memory.
    #[error("guest memory layout refused: {0}")]
    Region(String),
}

/// What lies behind guest memory.
#[derive(Clone, Copy)]
pub enum Backing<'a> {
    /// Nothing yet: pages come when they are touched.
    ///
    /// `huge_pages` asks for 2 MiB pages everywhere: a faster start that takes more memory. Without it they are asked for
    /// above [`layout::IDLE_END`] and refused below, whatever the host's default: what an idle pod takes does not depend on
    /// the node's settings, and what a busy one uses comes with one fault per 2 MiB.
    Fresh {
        /// See above.
        huge_pages: bool,
    },
    /// A file that becomes a template by what the guest writes.
    Template(&'a File),
    /// The file of a template, which stays as it is. Only its `stretches` are mapped: the rest is [`Backing::Fresh`].
    Clone {
        /// The file.
        file: &'a File,
        /// What [`stretches`] said of it.
        stretches: &'a [Range],
    },
}

/// Allocates guest memory for `ranges`. Pages cost nothing until the guest touches them.
pub fn allocate(ranges: &[Range], backing: Backing<'_>) -> Result<GuestMemory, MemoryError> {
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
    match backing {
        Backing::Fresh { huge_pages } => {
            let first = if huge_pages { 0 } else { layout::IDLE_END };
            for range in ranges {
                let start = range.start.max(first);
                advise_huge_pages(&memory, Range { start, len: range.end().saturating_sub(start) });
            }
        }
        Backing::Template(file) => {
            let whole = Range { start: 0, len: bytes as u64 };
            show(file, base, bytes, &[whole], libc::MAP_SHARED)?;
        }
        Backing::Clone { file, stretches } => {
            show(file, base, bytes, stretches, libc::MAP_PRIVATE)?;
            for range in ranges {
                between(*range, stretches).for_each(|busy| advise_huge_pages(&memory, busy));
            }
        }
    }
    Ok(memory)
}

/// Where a clone's containers work: what lies in `range` at least [`layout::SETTLING`] behind a stretch of its template, up to
/// the next. An idle pod fills what comes right behind a stretch, and only in part. A place in
/// the file is an address up to the hole below 4 GiB; behind that the advice is only less exact.
fn between(range: Range, stretches: &[Range]) -> impl Iterator<Item = Range> {
    let next = stretches.iter().skip(1).map(|stretch| stretch.start).chain([u64::MAX]);
    stretches.iter().zip(next).map(move |(stretch, next)| {
        let start = stretch.end().saturating_add(layout::SETTLING).max(range.start);
        Range { start, len: next.min(range.end()).saturating_sub(start) }
    })
}

/// The stretches of a memory file that hold anything, in whole blocks of 2 MiB and rising order.
pub fn stretches(file: &File) -> Result<Vec<Range>, MemoryError> {
    let block = LARGE_PAGE as u64;
    let seek = |from: u64, what| lseek64(file, from as i64, what).map(|found| found as u64);
    let failed = |error: nix::Error| MemoryError::File(error.into());
    let mut found: Vec<Range> = Vec::new();
    let mut from = 0;
    loop {
        let data = match seek(from, Whence::SeekData) {
            Ok(data) => data,
            // Nothing behind `from`.
            Err(nix::Error::ENXIO) => return Ok(found),
            Err(error) => return Err(failed(error)),
        };
        let end = seek(data, Whence::SeekHole).map_err(failed)?.next_multiple_of(block);
        let start = data / block * block;
        match found.last_mut() {
            Some(last) if last.end() == start => last.len = end - last.start,
            _ => found.push(Range { start, len: end - start }),
        }
        from = end;
    }
}

/// Lays stretches of `file` over the mapping of `bytes` at `base`, which nobody has touched yet.
fn show(
    file: &File,
    base: NonNull<u8>,
    bytes: usize,
    stretches: &[Range],
    sharing: i32,
) -> Result<(), MemoryError> {
    let have = file.metadata().map_err(MemoryError::File)?.len();
    if have != bytes as u64 {
        return Err(MemoryError::FileSize { have, need: bytes });
    }
    let mut end = 0;
    for stretch in stretches {
        let aligned = stretch.start.is_multiple_of(4096) && stretch.len.is_multiple_of(4096);
        let last = stretch.start.checked_add(stretch.len).filter(|last| *last <= have);
        let (Some(last), true, true) = (last, aligned && stretch.len > 0, stretch.start >= end) else {
            return Err(MemoryError::Region(
                "stretches of the memory file overlap or lie outside of it".into(),
            ));
        };
        end = last;
        show_stretch(file.as_fd(), base, *stretch, sharing)?;
    }
    Ok(())
}

fn show_stretch(
    file: BorrowedFd<'_>,
    base: NonNull<u8>,
    stretch: Range,
    sharing: i32,
) -> Result<(), MemoryError> {
    let bytes = stretch.len as usize;
    // SAFETY: `show` has checked that the stretch lies in the mapping at `base`.
    let place = unsafe { base.add(stretch.start as usize) };
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = sharing | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let offset = stretch.start as libc::off_t;
    // SAFETY: replaces a part of the mapping that `map_aligned` has just made for `allocate`, into which nothing points yet
    // but the regions of guest memory, whose addresses and access stay the same.
    let mapped = unsafe { libc::mmap(place.as_ptr().cast(), bytes, access, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED {
        return Err(MemoryError::Map { bytes, source: nix::Error::last() });
    }
    // SAFETY: advice about the mapping just made; guest memory must never appear in a core file.
    unsafe { libc::madvise(mapped, bytes, libc::MADV_DONTDUMP) };
    Ok(())
}

/// Asks for the 2 MiB pages that lie wholly in `range`, one fault each: where the guest fills them anyway, they take no memory
/// more. A range outside guest memory gets none.
pub fn advise_huge_pages(memory: &GuestMemory, range: Range) {
    let first = range.start.next_multiple_of(LARGE_PAGE as u64);
    let bytes = range.end().saturating_sub(first) as usize & !(LARGE_PAGE - 1);
    let Ok(pages) = memory.get_slice(GuestAddress(first), bytes) else { return };
    let address = pages.ptr_guard_mut().as_ptr();
    // SAFETY: advice about the mapping of `map_aligned`, which covers the slice; it changes no byte. A kernel without large
    // pages refuses it, which is no failure.
    unsafe { libc::madvise(address.cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// Gives `range` pages that can be written, each a copy of what it shows now.
pub fn populate(memory: &GuestMemory, range: Range) -> Result<(), MemoryError> {
    let bytes = range.len as usize;
    let outside = |e: vm_memory::GuestMemoryError| MemoryError::Region(e.to_string());
    let pages = memory.get_slice(GuestAddress(range.start), bytes).map_err(outside)?;
    let address = pages.ptr_guard_mut().as_ptr();
    // SAFETY: as if each page of the slice were written with what it holds, which no guest can see.
    match unsafe { libc::madvise(address.cast(), bytes, libc::MADV_POPULATE_WRITE) } {
        0 => Ok(()),
        _ => Err(MemoryError::Populate { bytes, source: io::Error::last_os_error() }),
    }
}

/// Whether `block` of a memory file has no hole.
pub fn is_full(file: &File, block: Range) -> Result<bool, MemoryError> {
    match lseek64(file, block.start as i64, Whence::SeekHole) {
        Ok(hole) => Ok(hole as u64 >= block.end()),
        Err(error) => Err(MemoryError::File(error.into())),
    }
}

/// Has the host make one large page of a block of the file behind guest memory, in which a fault shows all of it (Linux 6.1
/// can). It is for all who map the file.
///
/// # Errors
/// Where the host makes none, also after some tries; nothing has changed then.
pub fn collapse(memory: &GuestMemory, block: Range) -> io::Result<()> {
    /// EAGAIN says that a page was in use just then, as on a node with much to do (madvise(2)).
    const TRIES: u32 = 4;
    let outside = |e: vm_memory::GuestMemoryError| io::Error::new(io::ErrorKind::InvalidInput, e.to_string());
    let pages = memory.get_slice(GuestAddress(block.start), block.len as usize).map_err(outside)?;
    let address = pages.ptr_guard_mut().as_ptr();
    let mut tries = 1;
    loop {
        // SAFETY: advice about the mapping of `map_aligned`, which covers the slice; it changes no byte.
        match unsafe { libc::madvise(address.cast(), block.len as usize, MADV_COLLAPSE) } {
            0 => return Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES => tries += 1,
                error => return Err(error),
            },
        }
    }
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
    let padded = bytes.checked_add(LARGE_PAGE).ok_or(failed(nix::Error::ENOMEM))?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), padded, libc::PROT_READ | libc::PROT_WRITE, MAP_FLAGS, -1, 0)
    };
    if start == libc::MAP_FAILED {
        return Err(failed(nix::Error::last()));
    }
    let lead = start.align_offset(LARGE_PAGE);
    // SAFETY: lead is below LARGE_PAGE, by which the mapping is longer than `bytes`.
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
    use std::os::unix::fs::FileExt;
    use vm_memory::{Bytes, GuestMemoryRegion};

    const FRESH: Backing<'static> = Backing::Fresh { huge_pages: false };
    const MIB: u64 = 1 << 20;

    fn memory_file(mib: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(mib * MIB).unwrap();
        file
    }

    #[test]
    fn memory_is_aligned_to_2_mib() {
        let memory = allocate(&layout::ram(64), Backing::Fresh { huge_pages: true }).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host.align_offset(LARGE_PAGE), 0);
    }

    #[test]
    fn huge_pages_are_asked_for_inside_a_range_only() {
        let memory = allocate(&layout::ram(64), FRESH).unwrap();
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
        let memory = allocate(&layout::ram(64), FRESH).unwrap();
        advise_huge_pages(&memory, Range { start: 48 << 20, len: 32 << 20 });
        advise_huge_pages(&memory, Range { start: 1 << 20, len: 0 });
    }

    #[test]
    fn memory_around_the_hole_can_be_used_and_the_hole_cannot() {
        let memory = allocate(&layout::ram(4096), FRESH).unwrap();
        assert_eq!(memory.num_regions(), 2);
        assert_eq!(memory.iter().map(|r| r.len()).sum::<u64>(), 4 << 30);
        let last = GuestAddress(layout::HOLE_END + (1 << 30) - 8);
        memory.write_obj(0x1234_u64, last).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0x1234);
        assert!(memory.write_obj(1_u8, GuestAddress(layout::HOLE)).is_err());
    }

    #[test]
    fn template_writes_to_its_file_and_clones_do_not() {
        let file = memory_file(64);
        let ram = layout::ram(64);
        let at = GuestAddress(0x12_3450);
        let template = allocate(&ram, Backing::Template(&file)).unwrap();
        template.write_obj(7_u64, at).unwrap();

        let stretches = stretches(&file).unwrap();
        assert_eq!(stretches, [Range { start: 0, len: 2 * MIB }]);
        let clones: Vec<_> = (0..2)
            .map(|_| allocate(&ram, Backing::Clone { file: &file, stretches: &stretches }).unwrap())
            .collect();
        let outside = GuestAddress(32 * MIB);
        for (number, clone) in (8_u64..).zip(&clones) {
            assert_eq!(clone.read_obj::<u64>(at).unwrap(), 7);
            clone.write_obj(number, at).unwrap();
            clone.write_obj(number, outside).unwrap();
        }
        assert_eq!(clones[0].read_obj::<u64>(at).unwrap(), 8);
        assert_eq!(clones[1].read_obj::<u64>(outside).unwrap(), 9);
        assert_eq!(template.read_obj::<u64>(at).unwrap(), 7);
        assert_eq!(template.read_obj::<u64>(outside).unwrap(), 0);
    }

    #[test]
    fn stretches_are_blocks_that_hold_something() {
        let file = memory_file(64);
        for mib in [1, 3, 10, 63] {
            file.write_all_at(b"x", mib * MIB).unwrap();
        }
        let found: Vec<_> = stretches(&file).unwrap().iter().map(|s| (s.start / MIB, s.len / MIB)).collect();
        assert_eq!(found, [(0, 4), (10, 2), (62, 2)]);
        assert!(stretches(&memory_file(64)).unwrap().is_empty());
    }

    #[test]
    fn file_or_stretches_that_do_not_fit_are_refused() {
        let ram = layout::ram(64);
        let short = memory_file(63);
        assert!(matches!(allocate(&ram, Backing::Template(&short)), Err(MemoryError::FileSize { .. })));
        let file = memory_file(64);
        let bad: [&[Range]; 5] = [
            &[Range { start: 63 * MIB, len: 2 * MIB }],
            &[Range { start: !4095, len: 4096 }],
            &[Range { start: 1, len: 4096 }],
            &[Range { start: 0, len: 0 }],
            &[Range { start: 4096, len: 8192 }, Range { start: 8192, len: 4096 }],
        ];
        for stretches in bad {
            let refused = allocate(&ram, Backing::Clone { file: &file, stretches });
            assert!(matches!(refused, Err(MemoryError::Region(_))), "{stretches:?}");
        }
    }

    #[test]
    fn clone_works_in_large_pages_well_behind_what_its_template_fills() {
        let mib = |start: u64, len: u64| Range { start: start * MIB, len: len * MIB };
        let stretches = [mib(0, 2), mib(4, 30), mib(126, 2), mib(250, 6)];
        let busy: Vec<_> = between(mib(0, 256), &stretches)
            .filter(|busy| busy.len > 0)
            .map(|b| (b.start / MIB, b.end() / MIB))
            .collect();
        assert_eq!(busy, [(66, 126), (160, 250)]);
        assert_eq!(between(mib(0, 64), &[]).count(), 0);
    }
}
