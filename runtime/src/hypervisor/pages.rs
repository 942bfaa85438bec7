//! The pages that clones of a template write: which ones a VMM may name, and in what portions a clone is
//! given them.
//!
//! Used by `vm`, which asks VMMs for them and hands them out, and by `template` for records. A VMM may be in
//! the hands of its guest: what it names is looked at before it is kept.

use isopod_protocols::vmm::{MAX_PAGE_RANGES, PAGE_SIZE, PageRange};

/// Pages that a VMM populates before it looks after its guest again: less than a millisecond's work.
const POPULATED_AT_ONCE: u64 = 128;

/// Where guest memory is interrupted, as addresses: `vmm/src/layout.rs` has the same.
const HOLE: u64 = 0xc000_0000;
const HOLE_END: u64 = 0x1_0000_0000;

/// Whether a guest with that much memory, which it booted with, can have written these pages: in rising
/// order, none twice, each range within its memory, and no more of them than a VMM may name.
pub fn are_possible(pages: &[PageRange], memory_bytes: u64) -> bool {
    let above = HOLE_END..=HOLE_END.saturating_add(memory_bytes.saturating_sub(HOLE));
    let below = 0..=memory_bytes.min(HOLE);
    let mut next = 0;
    let possible = |&PageRange(first, count): &PageRange| {
        let Some(end) = first.checked_add(count) else { return false };
        let addresses = first.checked_mul(PAGE_SIZE).zip(end.checked_mul(PAGE_SIZE));
        let within =
            addresses.is_some_and(|(a, b)| [&below, &above].iter().any(|r| r.contains(&a) && r.contains(&b)));
        let rising = count > 0 && first >= next;
        next = end;
        within && rising
    };
    pages.len() <= MAX_PAGE_RANGES && pages.iter().all(possible)
}

/// Ranges of about [`POPULATED_AT_ONCE`] pages together. They are [possible](are_possible): of others there
/// might be more than the node has memory for.
pub fn pieces(pages: &[PageRange]) -> Vec<Vec<PageRange>> {
    let mut pieces = Vec::new();
    let mut room = 0;
    for &PageRange(mut first, mut count) in pages {
        while count > 0 {
            if room == 0 {
                pieces.push(Vec::new());
                room = POPULATED_AT_ONCE;
            }
            let taken = count.min(room);
            pieces.last_mut().expect("one was pushed when there was no room").push(PageRange(first, taken));
            (first, count, room) = (first + taken, count - taken, room - taken);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn pages_that_no_guest_of_that_memory_has_are_refused() {
        let pages = 256 << 20 >> 12;
        let small = |ranges: &[PageRange]| are_possible(ranges, pages * PAGE_SIZE);
        assert!(small(&[]));
        assert!(small(&[PageRange(0, 3), PageRange(3, 1), PageRange(pages - 1, 1)]));
        for wrong in [
            &[PageRange(0, u64::MAX)][..],
            &[PageRange(u64::MAX, 2)],
            &[PageRange(u64::MAX / PAGE_SIZE, 2)],
            &[PageRange(0, pages + 1)],
            &[PageRange(pages, 1)],
            &[PageRange(HOLE_END / PAGE_SIZE, 1)],
            &[PageRange(7, 0)],
            &[PageRange(0, 2), PageRange(1, 2)],
            &[PageRange(8, 1), PageRange(2, 1)],
        ] {
            assert!(!small(wrong), "{wrong:?}");
        }
        let many: Vec<_> = (0..=MAX_PAGE_RANGES as u64).map(|number| PageRange(number * 2, 1)).collect();
        assert!(small(&many[1..]) && !small(&many));
    }

    #[test]
    fn pages_above_the_hole_are_those_of_large_guests_and_in_it_there_are_none() {
        let large = |first, bytes| are_possible(&[PageRange(first / PAGE_SIZE, bytes / PAGE_SIZE)], 4 * GIB);
        assert!(large(0, 3 * GIB) && large(4 * GIB, GIB));
        assert!(!large(0, 4 * GIB) && !large(3 * GIB, PAGE_SIZE) && !large(4 * GIB, GIB + PAGE_SIZE));
    }

    #[test]
    fn pages_are_populated_in_pieces_that_are_not_large() {
        assert!(pieces(&[]).is_empty());
        let small = [PageRange(1, 3), PageRange(9, 1)];
        assert_eq!(pieces(&small), [small.to_vec()]);
        let large = [PageRange(0, POPULATED_AT_ONCE - 1), PageRange(1000, 2 * POPULATED_AT_ONCE)];
        let expected = [
            vec![PageRange(0, POPULATED_AT_ONCE - 1), PageRange(1000, 1)],
            vec![PageRange(1001, POPULATED_AT_ONCE)],
            vec![PageRange(1001 + POPULATED_AT_ONCE, POPULATED_AT_ONCE - 1)],
        ];
        assert_eq!(pieces(&large), expected);
    }
}
