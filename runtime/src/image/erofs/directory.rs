//! Directory blocks: a table of entries, then their names. All names of all blocks are in order, so blocks are searched
//! by their first names.
//!
//! ```text
//! | inode u64, name offset u16, type u8, 0 | ... | name | name | ... | zeros |
//! ```

use super::error::{ErofsError, corrupt};
use super::image::{u16_at, u64_at};
use std::cmp::Ordering;

const ENTRY: usize = 12;
const LONGEST_NAME: usize = 255;

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
