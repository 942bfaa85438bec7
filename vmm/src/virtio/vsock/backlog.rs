//! Bytes from the guest that a host program has not taken yet: a ring of fixed size, there only while it holds something.

use std::io::IoSlice;

use crate::virtio::Buffers;

/// A bounded queue of bytes.
pub struct Backlog {
    capacity: usize,
    ring: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Backlog {
    /// An empty queue for at most `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, ring: Box::default(), start: 0, len: 0 }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `bytes` to the end.
    ///
    /// # Panics
    /// When they do not fit: the caller has checked them against its credit.
    pub fn push(&mut self, mut bytes: Buffers<'_>) {
        assert!(bytes.len() <= self.capacity - self.len, "more bytes than the credit that was given");
        if bytes.is_empty() {
            return;
        }
        if self.ring.is_empty() {
            self.ring = vec![0; self.capacity].into();
        }
        let end = (self.start + self.len) % self.capacity;
        self.len += bytes.len();
        let first = bytes.split_front(self.capacity - end);
        first.copy_to(&mut self.ring[end..]);
        bytes.copy_to(&mut self.ring);
    }

    /// All bytes, in order, in at most two pieces.
    pub fn pieces(&self) -> [IoSlice<'_>; 2] {
        let first = self.len.min(self.ring.len() - self.start);
        let second = self.len - first;
        [IoSlice::new(&self.ring[self.start..self.start + first]), IoSlice::new(&self.ring[..second])]
    }

    /// Takes `count` bytes off the front, of those there are.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.start = (self.start + count) % self.capacity;
        if self.len == 0 {
            self.clear();
        }
    }

    /// Drops all bytes and the memory.
    pub fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use vm_memory::VolatileSlice;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in prop::collection::vec((0usize..12, 0usize..12), 1..60)) {
            let mut backlog = Backlog::new(16);
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (push, consume) in steps {
                let push = push.min(16 - model.len());
                let mut bytes: Vec<u8> = (0..push).map(|i| next.wrapping_add(i as u8)).collect();
                next = next.wrapping_add(push as u8);
                model.extend(bytes.iter().copied());
                let mut buffers = Buffers::default();
                buffers.push(VolatileSlice::from(&mut bytes[..]));
                backlog.push(buffers);

                let found: Vec<u8> = backlog.pieces().iter().flat_map(|piece| piece.to_vec()).collect();
                prop_assert_eq!(found, model.iter().copied().collect::<Vec<_>>());
                backlog.consume(consume);
                model.drain(..consume.min(model.len()));
                prop_assert_eq!(backlog.is_empty(), model.is_empty());
            }
        }
    }
}
