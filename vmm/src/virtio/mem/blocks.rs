//! Which blocks of the region are plugged. Called by the memory device, which checks what a guest may ask for; this file
//! only keeps the count and the map in step.

use serde::{Deserialize, Serialize};

/// What a range of blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// All of them are plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

/// Neighbouring blocks, counted from the start of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl BlockRange {
    fn indices(self) -> std::ops::Range<usize> {
        let first = self.first as usize;
        first..first + self.count as usize
    }
}

/// The blocks of a region.
pub struct Blocks {
    /// Whether each is plugged. Zeroes that nobody writes take no memory.
    map: Vec<bool>,
    plugged: u32,
}

impl Blocks {
    /// `count` blocks, of which those in `plugged` are. `None` if the ranges are empty, overlap, fall or reach too far.
    pub fn from_ranges(count: u32, plugged: &[BlockRange]) -> Option<Self> {
        let mut blocks = Self { map: vec![false; count as usize], plugged: 0 };
        let mut end = 0;
        for range in plugged {
            if !blocks.contains(*range) || (range.first as usize) < end {
                return None;
            }
            end = range.indices().end;
            blocks.set(*range, true);
        }
        Some(blocks)
    }

    /// The plugged ones, in rising order.
    pub fn ranges(&self) -> Vec<BlockRange> {
        let mut ranges = Vec::new();
        let mut first = 0;
        for run in self.map.chunk_by(|a, b| a == b) {
            let count = run.len() as u32;
            if run[0] {
                ranges.push(BlockRange { first, count });
            }
            first += count;
        }
        ranges
    }

    /// How many are plugged.
    pub fn plugged(&self) -> u32 {
        self.plugged
    }

    /// Whether `range` has a block, and none outside the region.
    pub fn contains(&self, range: BlockRange) -> bool {
        range.count > 0 && range.indices().end <= self.map.len()
    }

    /// What the blocks of a range are that the region contains.
    pub fn state(&self, range: BlockRange) -> BlockState {
        let blocks = &self.map[range.indices()];
        match blocks.iter().filter(|plugged| **plugged).count() {
            0 => BlockState::Unplugged,
            all if all == blocks.len() => BlockState::Plugged,
            _ => BlockState::Mixed,
        }
    }

    /// Makes all blocks of a range plugged, or not, that the region contains.
    pub fn set(&mut self, range: BlockRange, plugged: bool) {
        for block in &mut self.map[range.indices()] {
            match (*block, plugged) {
                (false, true) => self.plugged += 1,
                (true, false) => self.plugged -= 1,
                _ => {}
            }
            *block = plugged;
        }
    }
}
