//! The guest memory that one descriptor chain points to, as a list of slices that were checked once.
//!
//! Devices cut headers off the front and status bytes off the back, copy small fields, and hand the rest to
//! [`super::sys`] for vectored I/O, so payload bytes move between guest memory and a file or socket without a copy in
//! between. The guest may change the bytes at any time: whoever copies a field out uses that copy and never reads twice.

use vm_memory::VolatileSlice;

/// Guest memory, in pieces. Lives as long as a borrow of the memory map.
#[derive(Clone, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> Buffers<'m> {
    /// Adds `slice` at the end. Empty slices are left out.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.length += slice.len();
            self.slices.push(slice);
        }
    }

    /// Adds all of `other` at the end.
    pub fn append(&mut self, other: &Buffers<'m>) {
        self.length += other.length;
        self.slices.extend_from_slice(&other.slices);
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The pieces, in order; none is empty.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Takes the first `count` bytes off, or all if there are fewer.
    pub fn split_front(&mut self, count: usize) -> Buffers<'m> {
        let mut front = Buffers::default();
        let mut whole = 0;
        for slice in &self.slices {
            let wanted = count - front.length;
            if slice.len() > wanted {
                break;
            }
            front.push(*slice);
            whole += 1;
        }
        self.slices.drain(..whole);
        let wanted = count - front.length;
        if wanted > 0
            && let Some(first) = self.slices.first_mut()
        {
            let (cut, rest) = first.split_at(wanted).expect("the slice is longer than what is wanted");
            front.push(cut);
            *first = rest;
        }
        self.length -= front.length;
        front
    }

    /// Leaves the first `count` bytes out, or all if there are fewer. For what is copied by [`Self::first`]
    /// already: it makes no list of them.
    pub fn skip_front(&mut self, count: usize) {
        let mut left = count.min(self.length);
        self.length -= left;
        let mut fits = |slice: &&VolatileSlice<'m>| match left.checked_sub(slice.len()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        };
        let whole = self.slices.iter().take_while(&mut fits).count();
        self.slices.drain(..whole);
        if left > 0 {
            self.slices[0] = self.slices[0].offset(left).expect("the slice is longer than what is left");
        }
    }

    /// Takes the last `count` bytes off, or all if there are fewer.
    pub fn split_back(&mut self, count: usize) -> Buffers<'m> {
        let front = self.split_front(self.length.saturating_sub(count));
        std::mem::replace(self, front)
    }

    /// Copies to `target` what fits. Returns the number of bytes copied.
    pub fn copy_to(&self, target: &mut [u8]) -> usize {
        let mut copied = 0;
        for slice in &self.slices {
            copied += slice.copy_to(&mut target[copied..]);
        }
        copied
    }

    /// Copies from `source` what fits. Returns the number of bytes copied.
    pub fn copy_from(&self, source: &[u8]) -> usize {
        let mut copied = 0;
        for slice in &self.slices {
            let count = slice.len().min(source.len() - copied);
            slice.copy_from(&source[copied..copied + count]);
            copied += count;
        }
        copied
    }

    /// Sets all bytes to zero.
    pub fn zero(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for slice in &self.slices {
            let mut rest = *slice;
            while !rest.is_empty() {
                let count = rest.len().min(ZEROES.len());
                rest.copy_from(&ZEROES[..count]);
                rest = rest.offset(count).expect("count is at most the slice's length");
            }
        }
    }

    /// Copies the first `N` bytes, if there are as many.
    pub fn first<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.copy_to(&mut bytes) == N).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buffers<'m>(memory: &'m mut [u8], lengths: &[usize]) -> Buffers<'m> {
        let whole = VolatileSlice::from(memory);
        let mut buffers = Buffers::default();
        let mut offset = 0;
        for length in lengths {
            buffers.push(whole.subslice(offset, *length).unwrap());
            offset += length;
        }
        buffers
    }

    proptest! {
        #[test]
        fn splits_keep_every_byte_in_order(
            lengths in prop::collection::vec(0usize..40, 0..8),
            front in 0usize..400,
            back in 0usize..400,
        ) {
            let total: usize = lengths.iter().sum();
            let bytes: Vec<u8> = (0..total).map(|i| i as u8).collect();
            let mut memory = bytes.clone();
            let mut middle = buffers(&mut memory, &lengths);

            let mut skipped = middle.clone();
            skipped.skip_front(front);
            let first = middle.split_front(front);
            let places = |buffers: &Buffers<'_>| -> Vec<_> {
                buffers.slices().iter().map(|slice| (slice.ptr_guard().as_ptr(), slice.len())).collect()
            };
            prop_assert_eq!((skipped.len(), places(&skipped)), (middle.len(), places(&middle)));
            let last = middle.split_back(back);

            let mut joined = Vec::new();
            for part in [&first, &middle, &last] {
                let mut copy = vec![0; part.len()];
                prop_assert_eq!(part.copy_to(&mut copy), part.len());
                prop_assert!(part.slices().iter().all(|slice| !slice.is_empty()));
                joined.extend(copy);
            }
            prop_assert_eq!(joined, bytes);
            prop_assert_eq!(first.len(), front.min(total));
            prop_assert_eq!(last.len(), back.min(total - first.len()));
        }

        #[test]
        fn copies_fill_all_pieces(lengths in prop::collection::vec(0usize..9000, 0..5)) {
            let total: usize = lengths.iter().sum();
            let mut memory = vec![1; total];
            let target = buffers(&mut memory, &lengths);
            let source: Vec<u8> = (0..total + 3).map(|i| i as u8).collect();

            prop_assert_eq!(target.copy_from(&source), total);
            let mut back = vec![0; total];
            target.copy_to(&mut back);
            prop_assert_eq!(&back[..], &source[..total]);
            target.zero();
            prop_assert!(memory.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn first_needs_all_its_bytes() {
        let mut memory = [1, 2, 3];
        let buffers = buffers(&mut memory, &[1, 2]);
        assert_eq!(buffers.first::<3>(), Some([1, 2, 3]));
        assert_eq!(buffers.first::<4>(), None);
    }
}
