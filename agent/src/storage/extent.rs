//! A range of the pod's extent disk, checked.

use isopod_protocols::agent::Extent;
use std::fmt;

/// Bytes of a sector, in which device-mapper counts.
const SECTOR: u64 = 512;

/// A range of the extent disk: whole sectors, not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentRange {
    offset: u64,
    length: u64,
}

/// A range that no extent can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{field}: extent of {length} bytes at {offset} is empty, out of range or not made of whole sectors of {SECTOR} bytes"
)]
pub struct ExtentError {
    field: &'static str,
    offset: u64,
    length: u64,
}

impl ExtentRange {
    /// Checks a range; `field` is its name in the request, for the message.
    pub fn parse(field: &'static str, extent: &Extent) -> Result<ExtentRange, ExtentError> {
        let Extent { offset, length } = *extent;
        let whole = offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
        let fits = offset.checked_add(length).is_some_and(|end| end <= i64::MAX as u64);
        if length == 0 || !whole || !fits {
            return Err(ExtentError { field, offset, length });
        }
        Ok(ExtentRange { offset, length })
    }

    /// First byte on the disk; no two extents in use have the same, so it serves as the extent's name.
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// First sector on the disk.
    pub fn first_sector(self) -> u64 {
        self.offset / SECTOR
    }

    /// Length in sectors.
    pub fn sectors(self) -> u64 {
        self.length / SECTOR
    }
}

impl fmt::Display for ExtentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "extent of {} bytes at {}", self.length, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(offset: u64, length: u64) -> Result<ExtentRange, ExtentError> {
        ExtentRange::parse("layers", &Extent { offset, length })
    }

    #[test]
    fn range_of_whole_sectors_is_accepted() {
        let range = parse(1 << 20, 4096).unwrap();
        assert_eq!((range.first_sector(), range.sectors()), (2048, 8));
    }

    #[test]
    fn empty_ragged_and_overflowing_ranges_are_refused() {
        for (offset, length) in [(0, 0), (1, 512), (512, 513), (u64::MAX - 511, 512), (1 << 62, 1 << 62)] {
            assert!(parse(offset, length).is_err(), "{offset} {length}");
        }
    }

    proptest! {
        #[test]
        fn accepted_ranges_never_overflow(offset: u64, length: u64) {
            if let Ok(range) = parse(offset, length) {
                prop_assert!(range.first_sector().checked_add(range.sectors()).is_some());
            }
        }
    }
}
