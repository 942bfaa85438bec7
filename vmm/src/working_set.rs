//! The pages that every clone of a template writes: found in one clone that rehearses for the others, and given to each of
//! those before its guest asks for them.
//!
//! ```text
//!   rehearsal   the guest works -> what differs from the template is its working set
//!                                  -> blocks of the template that it left alone become large pages, for all clones
//!   each clone  populate: pages of its own for the working set, in a few calls
//! ```
//!
//! A page that comes when the guest writes to it costs up to three exits: one that shows the template's page, one that has it
//! copied, and one more because copying took back what was shown. See docs/decisions/0013. Called by `machine`. Nothing depends on
//! it: what is not populated comes when it is touched.

use std::{fs::File, io, os::unix::fs::FileExt};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use isopod_protocols::vmm::{MAX_PAGE_RANGES, PAGE_SIZE, PageRange};

use crate::{
    layout::{self, Range},
    log,
    memory::{self, GuestMemory, MemoryError},
};

/// Bytes compared at a time.
const PIECE: usize = 64 << 10;

/// Why a working set is not found or not populated.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// The template's memory cannot be read.
    #[error("cannot read the template's memory")]
    Template(#[source] io::Error),
    /// The guest's memory cannot be read.
    #[error("cannot read the guest's memory")]
    Guest(#[from] vm_memory::GuestMemoryError),
    /// The host refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// More than a message holds.
    #[error("the guest has written more than {MAX_PAGE_RANGES} stretches of memory")]
    Scattered,
}

/// What a rehearsal found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rehearsed {
    /// What the clone has written, in rising order.
    pub pages: Vec<PageRange>,
    /// Blocks of the template that are large pages now.
    pub large_pages: u32,
    /// Blocks that could be, and of which the host makes none.
    pub refused_large_pages: u32,
}

/// What this clone has written: the pages in which its memory differs from `template`, the file that it is a clone of. The
/// blocks of 2 MiB that it has left alone become large pages of the file.
pub fn rehearsed(memory: &GuestMemory, template: &File) -> Result<Rehearsed, WorkingSetError> {
    let stretches = memory::stretches(template)?;
    let pages = written(memory, template, &stretches)?;
    let mut found = Rehearsed { pages, ..Rehearsed::default() };
    let mut told = false;
    let blocks =
        stretches.iter().flat_map(|stretch| (stretch.start..stretch.end()).step_by(memory::LARGE_PAGE));
    // Up to the hole in the machine's memory a place in the file is an address. Behind it is no kernel.
    for start in blocks.take_while(|start| *start < layout::HOLE) {
        let block = Range { start, len: memory::LARGE_PAGE as u64 };
        if found.pages.iter().any(|range| overlaps(*range, block)) || !memory::is_full(template, block)? {
            continue;
        }
        match memory::collapse(memory, block) {
            Ok(()) => found.large_pages += 1,
            Err(error) => {
                found.refused_large_pages += 1;
                // One line for all of them: the reason is the same.
                if !std::mem::replace(&mut told, true) {
                    log::line(format_args!("no large page at {start:#x}: {error}"));
                }
            }
        }
    }
    Ok(found)
}

/// Gives the guest pages of its own.
pub fn populate(memory: &GuestMemory, pages: &[PageRange]) -> Result<(), WorkingSetError> {
    for PageRange(first, count) in pages {
        let range = Range { start: first.saturating_mul(PAGE_SIZE), len: count.saturating_mul(PAGE_SIZE) };
        memory::populate(memory, range)?;
    }
    Ok(())
}

/// Looks where a clone has small pages: in the stretches and a bit behind each. Elsewhere a large page comes by one fault, and there
/// may be much of it. Regions of memory lie in the file in their order; what is beyond the file was plugged in.
fn written(
    memory: &GuestMemory,
    template: &File,
    stretches: &[Range],
) -> Result<Vec<PageRange>, WorkingSetError> {
    let length = template.metadata().map_err(WorkingSetError::Template)?.len();
    let small = |place| stretches.iter().any(|s| (s.start..s.end() + layout::SETTLING).contains(&place));
    let (mut ours, mut theirs) = (vec![0; PIECE], vec![0; PIECE]);
    let mut found: Vec<PageRange> = Vec::new();
    let mut place = 0;
    for region in memory.iter() {
        let begin = region.start_addr().0;
        let pieces = (0..region.len()).step_by(PIECE).take_while(|offset| place + offset < length);
        for offset in pieces.filter(|offset| small(place + offset)) {
            let bytes = PIECE.min((region.len() - offset) as usize);
            memory.read_slice(&mut ours[..bytes], GuestAddress(begin + offset))?;
            // Read, not mapped: looking at a hole of a memory file through a mapping fills it.
            template
                .read_exact_at(&mut theirs[..bytes], place + offset)
                .map_err(WorkingSetError::Template)?;
            let pages = ours[..bytes].chunks(PAGE_SIZE as usize).zip(theirs.chunks(PAGE_SIZE as usize));
            for (page, _) in (0..).zip(pages).filter(|(_, (ours, theirs))| ours != theirs) {
                note(&mut found, (begin + offset) / PAGE_SIZE + page);
            }
        }
        place += region.len();
    }
    if found.len() > MAX_PAGE_RANGES {
        return Err(WorkingSetError::Scattered);
    }
    Ok(found)
}

fn note(found: &mut Vec<PageRange>, page: u64) {
    match found.last_mut() {
        Some(PageRange(first, count)) if *first + *count == page => *count += 1,
        _ => found.push(PageRange(page, 1)),
    }
}

fn overlaps(PageRange(first, count): PageRange, block: Range) -> bool {
    first * PAGE_SIZE < block.end() && (first + count) * PAGE_SIZE > block.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Backing;

    const MIB: u64 = 1 << 20;

    fn file_of(mib: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(mib * MIB).unwrap();
        file.write_all_at(&[1; 8 << 20], 2 * MIB).unwrap();
        file
    }

    fn clone_of(file: &File) -> GuestMemory {
        let stretches = memory::stretches(file).unwrap();
        let mib = file.metadata().unwrap().len() / MIB;
        memory::allocate(&layout::ram(mib as u32), Backing::Clone { file, stretches: &stretches }).unwrap()
    }

    #[test]
    fn clone_that_wrote_nothing_has_an_empty_working_set() {
        let file = file_of(64);
        assert_eq!(rehearsed(&clone_of(&file), &file).unwrap().pages, []);
    }

    #[test]
    fn every_block_that_was_left_alone_is_counted_as_large_or_refused() {
        let file = file_of(64);
        let clone = clone_of(&file);
        // The file has four blocks, one of which is written.
        clone.write_obj(7_u8, GuestAddress(4 * MIB)).unwrap();
        let found = rehearsed(&clone, &file).unwrap();
        assert_eq!(found.large_pages + found.refused_large_pages, 3, "{found:?}");
    }

    #[test]
    fn working_set_is_what_was_written_in_the_template_and_outside_of_it() {
        let file = file_of(64);
        let clone = clone_of(&file);
        for address in [2 * MIB, 3 * MIB + 5, 3 * MIB + 4096, 3 * MIB + 8191, 32 * MIB] {
            clone.write_obj(7_u8, GuestAddress(address)).unwrap();
        }
        let pages = |mib: u64, count| PageRange(mib * MIB / PAGE_SIZE, count);
        assert_eq!(rehearsed(&clone, &file).unwrap().pages, [pages(2, 1), pages(3, 2), pages(32, 1)]);
    }

    #[test]
    fn working_set_ends_where_pages_are_large() {
        let file = file_of(128);
        let clone = clone_of(&file);
        let end = 10 * MIB + layout::SETTLING;
        for address in [end - 1, end] {
            clone.write_obj(7_u8, GuestAddress(address)).unwrap();
        }
        assert_eq!(rehearsed(&clone, &file).unwrap().pages, [PageRange(end / PAGE_SIZE - 1, 1)]);
    }

    #[test]
    fn looking_for_a_working_set_fills_no_hole_of_the_template() {
        let file = file_of(64);
        let before = memory::stretches(&file).unwrap();
        rehearsed(&clone_of(&file), &file).unwrap();
        assert_eq!(memory::stretches(&file).unwrap(), before);
    }

    #[test]
    fn scattered_working_set_is_refused() {
        let file = file_of(64);
        let clone = clone_of(&file);
        for page in 0..=MAX_PAGE_RANGES as u64 {
            clone.write_obj(7_u8, GuestAddress(2 * MIB + page * 2 * PAGE_SIZE)).unwrap();
        }
        assert!(matches!(rehearsed(&clone, &file), Err(WorkingSetError::Scattered)));
    }

    #[test]
    fn populated_pages_keep_what_the_template_has() {
        let file = file_of(64);
        let clone = clone_of(&file);
        populate(&clone, &[PageRange(2 * MIB / PAGE_SIZE, 3), PageRange(32 * MIB / PAGE_SIZE, 1)]).unwrap();
        assert_eq!(clone.read_obj::<u8>(GuestAddress(2 * MIB)).unwrap(), 1);
        assert_eq!(clone.read_obj::<u8>(GuestAddress(32 * MIB)).unwrap(), 0);
        let stretches = memory::stretches(&file).unwrap();
        assert_eq!(written(&clone, &file, &stretches).unwrap(), []);
    }

    #[test]
    fn pages_outside_the_guests_memory_are_refused() {
        let clone = clone_of(&file_of(64));
        for outside in [PageRange(64 * MIB / PAGE_SIZE, 1), PageRange(u64::MAX, 1), PageRange(0, u64::MAX)] {
            assert!(populate(&clone, &[outside]).is_err(), "{outside:?}");
        }
    }
}
