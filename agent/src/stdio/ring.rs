//! The bytes of one output stream between the process that wrote them and the host that has yet to keep them.
//!
//! Pure bookkeeping, no I/O: [`super::output`] fills it from the process's pipe and empties it into connections. Every
//! byte has a number, counted from the stream's beginning, and is held until it is acknowledged.
//!
//! ```text
//!        0 ......... base ............. end
//!        acknowledged | held, readable | not yet read from the pipe
//! ```

use std::collections::VecDeque;

use isopod_protocols::stdio::WINDOW;

/// Capacity, in bytes, that an empty ring may keep; beyond it the memory goes back, as most streams are silent.
const KEPT_CAPACITY: usize = 16 * 1024;

/// A position that does not fit the stream.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// The host asks for bytes that it has acknowledged before.
    #[error("byte {asked} was acknowledged and is gone; the oldest kept is {base}")]
    Gone {
        /// First byte wanted.
        asked: u64,
        /// First byte held.
        base: u64,
    },
    /// The host names bytes that the process has not written.
    #[error("byte {asked} is beyond the stream's end at {end}")]
    Beyond {
        /// Position named.
        asked: u64,
        /// One past the last byte held.
        end: u64,
    },
}

/// Held bytes of one stream.
#[derive(Debug, Default)]
pub struct Ring {
    /// Number of the first byte held.
    base: u64,
    held: VecDeque<u8>,
    ended: bool,
}

impl Ring {
    /// One past the number of the last byte held.
    pub fn end(&self) -> u64 {
        self.base + self.held.len() as u64
    }

    /// Bytes that may be pushed now; 0 is the back-pressure on the process.
    pub fn room(&self) -> usize {
        WINDOW.saturating_sub(self.held.len())
    }

    /// Nothing will be pushed any more.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Adds what the process wrote, no more than [`Ring::room`].
    pub fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room() && !self.ended);
        self.held.extend(bytes);
    }

    /// Marks the end of the stream: all who could write have closed it.
    pub fn finish(&mut self) {
        self.ended = true;
    }

    /// Where a connection starts: at the byte it asks for, or at the first one held.
    pub fn resume(&self, asked: Option<u64>) -> Result<u64, RingError> {
        let Some(asked) = asked else { return Ok(self.base) };
        if asked < self.base {
            return Err(RingError::Gone { asked, base: self.base });
        }
        if asked > self.end() {
            return Err(RingError::Beyond { asked, end: self.end() });
        }
        Ok(asked)
    }

    /// Copies held bytes from number `from` on into `chunk`, as many as fit; returns how many.
    pub fn read(&self, from: u64, chunk: &mut [u8]) -> usize {
        let skip = usize::try_from(from.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let (front, back) = self.held.as_slices();
        let mut copied = 0;
        for part in [front.get(skip..), back.get(skip.saturating_sub(front.len())..)] {
            let part = part.unwrap_or_default();
            let count = part.len().min(chunk.len() - copied);
            chunk[copied..copied + count].copy_from_slice(&part[..count]);
            copied += count;
        }
        copied
    }

    /// The host keeps the first `total` bytes of the stream: those held below are dropped. Older totals change nothing.
    pub fn acknowledge(&mut self, total: u64) -> Result<(), RingError> {
        if total > self.end() {
            return Err(RingError::Beyond { asked: total, end: self.end() });
        }
        let count = total.saturating_sub(self.base);
        // `count` is at most the bytes held, which is a usize.
        self.held.drain(..count as usize);
        self.base += count;
        if self.held.is_empty() && self.held.capacity() > KEPT_CAPACITY {
            self.held = VecDeque::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn full_ring_has_no_room_until_acknowledged() {
        let mut ring = Ring::default();
        ring.push(&vec![7; WINDOW]);
        assert_eq!(ring.room(), 0);
        ring.acknowledge(10).unwrap();
        assert_eq!((ring.room(), ring.base), (10, 10));
    }

    #[test]
    fn resume_before_the_acknowledged_byte_is_refused() {
        let mut ring = Ring::default();
        ring.push(b"hello");
        ring.acknowledge(3).unwrap();
        assert_eq!(ring.resume(Some(2)), Err(RingError::Gone { asked: 2, base: 3 }));
        assert_eq!(ring.resume(Some(6)), Err(RingError::Beyond { asked: 6, end: 5 }));
        assert_eq!(ring.resume(None), Ok(3));
    }

    #[test]
    fn acknowledging_unwritten_bytes_is_refused() {
        let mut ring = Ring::default();
        ring.push(b"abc");
        assert_eq!(ring.acknowledge(4), Err(RingError::Beyond { asked: 4, end: 3 }));
        assert_eq!(ring.base, 0);
    }

    #[test]
    fn emptied_ring_gives_its_memory_back() {
        let mut ring = Ring::default();
        ring.push(&vec![1; WINDOW]);
        ring.acknowledge(WINDOW as u64).unwrap();
        assert!(ring.held.capacity() <= KEPT_CAPACITY);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize),
        Send(usize),
        Acknowledge(u8),
        Break,
        BreakKeepingCount,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..100_000).prop_map(Step::Write),
            (0usize..100_000).prop_map(Step::Send),
            any::<u8>().prop_map(Step::Acknowledge),
            Just(Step::Break),
            Just(Step::BreakKeepingCount),
        ]
    }

    /// Byte number `n` of the stream that the model process writes.
    fn byte(n: u64) -> u8 {
        (n ^ (n >> 8) ^ (n >> 16)) as u8
    }

    proptest! {
        // A host that counts what it kept reads every byte once, in order, whatever breaks in between; one that resumes
        // at the last acknowledged byte sees some twice, never one not at all.
        #[test]
        fn no_byte_is_lost_or_repeated(steps in proptest::collection::vec(step(), 1..200)) {
            let mut ring = Ring::default();
            let (mut written, mut position, mut kept, mut acknowledged) = (0u64, 0u64, 0u64, 0u64);
            for step in steps {
                match step {
                    Step::Write(count) => {
                        let count = count.min(ring.room());
                        let bytes: Vec<u8> = (written..written + count as u64).map(byte).collect();
                        ring.push(&bytes);
                        written += count as u64;
                    }
                    Step::Send(count) => {
                        let mut chunk = vec![0; count];
                        let got = ring.read(position, &mut chunk);
                        prop_assert_eq!(got as u64, (written - position).min(count as u64));
                        for (i, b) in chunk[..got].iter().enumerate() {
                            prop_assert_eq!(*b, byte(position + i as u64));
                        }
                        position += got as u64;
                        kept = kept.max(position);
                    }
                    Step::Acknowledge(part) => {
                        let total = acknowledged + (position.max(acknowledged) - acknowledged) * u64::from(part) / 255;
                        ring.acknowledge(total).unwrap();
                        acknowledged = total;
                    }
                    Step::Break => {
                        position = ring.resume(None).unwrap();
                        prop_assert!(position == acknowledged && position <= kept);
                    }
                    Step::BreakKeepingCount => {
                        position = ring.resume(Some(kept)).unwrap();
                        prop_assert_eq!(position, kept);
                    }
                }
                prop_assert!(ring.end() == written && ring.base == acknowledged);
                prop_assert!(ring.end() - ring.base <= WINDOW as u64);
            }
        }
    }
}
