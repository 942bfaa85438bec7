//! Maps of sparse files: which ranges of a file the archive holds; the others are holes. Four encodings give one form.
//!
//! Called by `reader`, which hands in the bytes. `content` reads by a map that [`Map::new`] has checked.

use super::header::Block;
use super::number::{decimal, numeric};
use super::pax::Records;
use std::ops::Range;

/// Entries in the header of the old GNU format, and its place.
const OLD_ENTRIES: Range<usize> = 386..482;
const OLD_CONTINUES: usize = 482;
const OLD_SIZE: Range<usize> = 483..495;
/// Entries in a block that continues such a header.
const CONTINUED_ENTRIES: Range<usize> = 0..504;
const CONTINUED_CONTINUES: usize = 504;

/// Bytes of one entry: two fields of 12.
const ENTRY: usize = 24;

const NO_NUMBER: &str = "it has a field that is no number";
const COUNT: &str = "it has not as many ranges as it says";

/// A range of a file that the archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub start: u64,
    pub end: u64,
}

/// The ranges of a file that the archive holds: in order, apart, not empty, within `size`.
#[derive(Debug)]
pub(super) struct Map {
    pub segments: Vec<Segment>,
    pub size: u64,
}

impl Map {
    /// Checks offsets and lengths against a file of `size` bytes. The error says what contradicts what.
    pub(super) fn new(ranges: Vec<(i64, i64)>, size: i64) -> Result<Self, &'static str> {
        let size = u64::try_from(size).map_err(|_| "the size of the file is negative")?;
        let mut segments = Vec::with_capacity(ranges.len());
        let mut reached = 0;
        for (offset, length) in ranges {
            let range = u64::try_from(offset).ok().zip(u64::try_from(length).ok());
            let (start, length) = range.ok_or("a range has a negative bound")?;
            let end = start + length;
            if end > size {
                return Err("a range lies behind the end of the file");
            }
            if start < reached {
                return Err("ranges overlap or are out of order");
            }
            reached = end;
            if start < end {
                segments.push(Segment { start, end });
            }
        }
        Ok(Self { segments, size })
    }
}

/// Which map the records of an extended header announce.
pub(super) enum Announced {
    /// None: the file is not sparse, or sparse in a version that nobody knows.
    None,
    /// Versions 0.0 and 0.1: the map is in the records.
    InRecords,
    /// Version 1.0: the map comes before the content.
    InContent,
}

impl Announced {
    pub(super) fn by(records: &Records) -> Self {
        match (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor")) {
            (b"0", b"0" | b"1") => Self::InRecords,
            (b"1", b"0") => Self::InContent,
            // both versions exist without a number
            (b"", b"") if !records.get("GNU.sparse.map").is_empty() => Self::InRecords,
            _ => Self::None,
        }
    }
}

/// Reads the map of versions 0.0 and 0.1: `offset,length,offset,length`.
pub(super) fn map_in_records(records: &Records) -> Result<Vec<(i64, i64)>, &'static str> {
    let count = decimal(records.get("GNU.sparse.numblocks")).and_then(|count| usize::try_from(count).ok());
    let text = records.get("GNU.sparse.map");
    let fields = if text.is_empty() { 0 } else { text.split(|byte| *byte == b',').count() };
    if count.and_then(|count| count.checked_mul(2)) != Some(fields) {
        return Err(COUNT);
    }
    let mut numbers = text.split(|byte| *byte == b',').take(fields).map(decimal);
    let mut ranges = Vec::with_capacity(fields / 2);
    while let (Some(offset), Some(length)) = (numbers.next(), numbers.next()) {
        ranges.push(offset.zip(length).ok_or(NO_NUMBER)?);
    }
    Ok(ranges)
}

/// Reads the map of version 1.0, which arrives in blocks: the number of ranges, then offset and length of each, one per
/// line. The content begins with the block after the last line.
#[derive(Default)]
pub(super) struct MapInContent {
    /// The last line as far as it is known.
    line: Vec<u8>,
    count: Option<u64>,
    offset: Option<i64>,
    ranges: Vec<(i64, i64)>,
}

impl MapInContent {
    /// Takes the next block. Whether the map is whole, so that no block must be taken any more.
    pub(super) fn push(&mut self, block: &Block) -> Result<bool, &'static str> {
        for byte in block {
            if self.is_whole() {
                break;
            }
            if *byte == b'\n' {
                self.number()?;
                self.line.clear();
            } else {
                self.line.push(*byte);
            }
        }
        Ok(self.is_whole())
    }

    pub(super) fn into_ranges(self) -> Vec<(i64, i64)> {
        self.ranges
    }

    fn is_whole(&self) -> bool {
        self.count == Some(self.ranges.len() as u64)
    }

    fn number(&mut self) -> Result<(), &'static str> {
        let number = decimal(&self.line).ok_or(NO_NUMBER)?;
        match (self.count, self.offset.take()) {
            (None, _) => self.count = Some(u64::try_from(number).map_err(|_| COUNT)?),
            (_, None) => self.offset = Some(number),
            (_, Some(offset)) => self.ranges.push((offset, number)),
        }
        Ok(())
    }
}

/// Reads the old GNU format's map: some entries in the header, more in blocks that follow it.
pub(super) struct OldMap {
    /// Size of the file with its holes.
    pub size: i64,
    pub ranges: Vec<(i64, i64)>,
    /// Whether another block of entries follows.
    pub continues: bool,
}

impl OldMap {
    pub(super) fn in_header(block: &Block) -> Result<Self, &'static str> {
        let size = numeric(&block[OLD_SIZE]).ok_or("the size of the file is no number")?;
        let mut map = Self { size, ranges: Vec::new(), continues: block[OLD_CONTINUES] != 0 };
        map.push_entries(&block[OLD_ENTRIES])?;
        Ok(map)
    }

    /// Takes a block that continues the header.
    pub(super) fn push(&mut self, block: &Block) -> Result<(), &'static str> {
        self.continues = block[CONTINUED_CONTINUES] != 0;
        self.push_entries(&block[CONTINUED_ENTRIES])
    }

    /// An entry that begins with a NUL ends those of a block, not of the map: GNU tar and BSD tar do the same.
    fn push_entries(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for entry in bytes.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0) {
            let (offset, length) = entry.split_at(ENTRY / 2);
            self.ranges.push(numeric(offset).zip(numeric(length)).ok_or(NO_NUMBER)?);
        }
        Ok(())
    }
}
