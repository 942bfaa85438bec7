//! Directory blocks: a table of entries, then their names. All names of all blocks are in order, so blocks are searched
//! by their first names.
//!
//! ```text
//! | inode u64, name offset u16, type u8, 0 | ... | name | name | ... | zeros |
//! ```

use super::error::{ErofsError, corrupt};
use super::format::{DIRECTORY_ENTRY as ENTRY, LONGEST_NAME};
use super::image::{u16_at, u64_at};
use std::cmp::Ordering;

/// One block of a directory, checked as far as it is read.
pub struct Block<'a> {
    directory: u64,
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Block<'a> {
    /// `bytes` is the whole block, or its part that the directory's size covers.
    pub fn new(directory: u64, bytes: &'a [u8]) -> Result<Self, ErofsError> {
        let wrong = || corrupt(directory, "a directory block has no valid table");
        if bytes.len() < ENTRY {
            return Err(wrong());
        }
        let names = usize::from(u16_at(bytes, 8));
        if names < ENTRY || names >= bytes.len() || !names.is_multiple_of(ENTRY) {
            return Err(wrong());
        }
        Ok(Self { directory, bytes, count: names / ENTRY })
    }

    /// Number of its entries, at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Name and inode number of an entry below [`Self::count`].
    pub fn entry(&self, index: usize) -> Result<(&'a [u8], u64), ErofsError> {
        let wrong = || corrupt(self.directory, "a directory entry has no valid name");
        let start = self.name_offset(index);
        let name = if index + 1 < self.count {
            self.bytes.get(start..self.name_offset(index + 1)).ok_or_else(wrong)?
        } else {
            let rest = self.bytes.get(start..).ok_or_else(wrong)?;
            rest.split(|byte| *byte == 0).next().unwrap_or_default()
        };
        let valid =
            (1..=LONGEST_NAME).contains(&name.len()) && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if !valid {
            return Err(wrong());
        }
        Ok((name, u64_at(self.bytes, index * ENTRY)))
    }

    /// The inode number of `name`, if the block has it.
    pub fn find(&self, name: &[u8]) -> Result<Option<u64>, ErofsError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, inode) = self.entry(middle)?;
            match name.cmp(found) {
                Ordering::Equal => return Ok(Some(inode)),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(None)
    }

    fn name_offset(&self, index: usize) -> usize {
        u16_at(self.bytes, index * ENTRY + 8).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of entries, given as offsets of names with inode numbers, and the bytes behind them.
    fn block(entries: &[(u16, u64)], names: &[u8]) -> Vec<u8> {
        let entry = |(offset, inode): &(u16, u64)| {
            [&inode.to_le_bytes()[..], &offset.to_le_bytes(), &[0, 0]].concat()
        };
        [entries.iter().flat_map(entry).collect(), names.to_vec()].concat()
    }

    fn names(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ErofsError> {
        let block = Block::new(1, bytes)?;
        (0..block.count()).map(|index| Ok(block.entry(index)?.0.to_vec())).collect()
    }

    #[test]
    fn entries_are_found_by_their_names() {
        let bytes = block(&[(36, 5), (37, 6), (39, 7)], b"abbccc\0\0");
        assert_eq!(names(&bytes).unwrap(), [&b"a"[..], b"bb", b"ccc"]);
        let block = Block::new(1, &bytes).unwrap();
        assert_eq!(block.find(b"bb").unwrap(), Some(6));
        for absent in [&b""[..], b"A", b"b", b"bbb", b"ccc\0", b"d"] {
            assert_eq!(block.find(absent).unwrap(), None, "{absent:?}");
        }
    }

    #[test]
    fn last_name_may_reach_the_end_of_the_block() {
        assert_eq!(names(&block(&[(12, 5)], b"name")).unwrap(), [b"name"]);
    }

    #[test]
    fn tables_that_make_no_sense_are_refused() {
        for first in [0, 1, 11, 13, 16, 4096, u16::MAX] {
            assert!(names(&block(&[(first, 5)], b"name")).is_err(), "{first}");
        }
        assert!(names(b"").is_err() && names(&[0; 11]).is_err());
    }

    #[test]
    fn names_that_make_no_sense_are_refused() {
        for (second, text) in
            [(24, "ab"), (23, "ab"), (0, "ab"), (27, "ab"), (u16::MAX, "ab"), (25, "a"), (25, "/b")]
        {
            assert!(names(&block(&[(24, 5), (second, 6)], text.as_bytes())).is_err(), "{second} {text}");
        }
        assert!(names(&block(&[(12, 5)], &[b'a'; 255])).is_ok());
        assert!(names(&block(&[(12, 5)], &[b'a'; 256])).is_err());
    }
}
