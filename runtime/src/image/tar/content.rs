//! The content of the current entry: bytes of the archive, and zeros for the holes of a sparse file.
//!
//! Called by `reader`. Data goes from the source into the caller's buffer directly.

use super::TarError;
use super::header::BLOCK;
use super::sparse::Map;
use std::io::{self, ErrorKind, Read};

/// The archive, with a count of what was read of it.
pub(super) struct Source<R> {
    reader: R,
    position: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, position: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Fills the buffer as far as the source goes. Gives the number of bytes, less than asked for only at its end.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    /// Passes over `amount` bytes. Gives how many there were, less than that only at the end of the source.
    pub(super) fn skip(&mut self, amount: u64) -> io::Result<u64> {
        let skipped = io::copy(&mut (&mut self.reader).take(amount), &mut io::sink())?;
        self.position += skipped;
        Ok(skipped)
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => {
                    self.position += result.as_ref().map_or(0, |read| *read as u64);
                    return result;
                }
            }
        }
    }
}

/// Content of an entry that was not read yet.
#[derive(Default)]
pub(super) struct Content {
    /// Position of the entry's header, for error texts.
    at: u64,
    /// Bytes of the archive that belong to it.
    stored: u64,
    /// Bytes from its end to the next block.
    padding: u64,
    sparse: Option<Sparse>,
}

struct Sparse {
    map: Map,
    /// The segment that ends after `position`, or the number of segments.
    segment: usize,
    position: u64,
}

impl Content {
    /// Content of `size` bytes of the archive, of the entry whose header is at `at`.
    pub(super) fn new(at: u64, size: u64) -> Self {
        Self { at, stored: size, padding: size.wrapping_neg() % BLOCK as u64, sparse: None }
    }

    /// Makes it the content of a sparse file. What of it was read already does not belong to the file.
    pub(super) fn set_map(&mut self, map: Map) {
        self.sparse = Some(Sparse { map, segment: 0, position: 0 });
    }

    /// Gives the bytes of the archive that belong to it and are still to be read, and those of the padding.
    pub(super) fn stored(&self) -> (u64, u64) {
        (self.stored, self.padding)
    }

    /// Reads bytes of the file; 0 at its end.
    pub(super) fn read<R: Read>(
        &mut self,
        source: &mut Source<R>,
        buffer: &mut [u8],
    ) -> Result<usize, TarError> {
        match self.sparse.take() {
            None => self.read_stored(source, buffer),
            Some(mut sparse) => {
                let result = self.read_sparse(&mut sparse, source, buffer);
                self.sparse = Some(sparse);
                result
            }
        }
    }

    /// Reads bytes of the archive; 0 at the content's end.
    pub(super) fn read_stored<R: Read>(
        &mut self,
        source: &mut Source<R>,
        buffer: &mut [u8],
    ) -> Result<usize, TarError> {
        let amount = usize::try_from(self.stored).unwrap_or(usize::MAX).min(buffer.len());
        if amount == 0 {
            return Ok(0);
        }
        let read = source.read(&mut buffer[..amount])?;
        if read == 0 {
            return Err(TarError::Truncated { at: source.position() });
        }
        self.stored -= read as u64;
        Ok(read)
    }

    fn read_sparse<R: Read>(
        &mut self,
        sparse: &mut Sparse,
        source: &mut Source<R>,
        buffer: &mut [u8],
    ) -> Result<usize, TarError> {
        let at = self.at;
        let damaged = |reason| TarError::SparseMap { at, reason };
        let mut filled = 0;
        while filled < buffer.len() && sparse.position < sparse.map.size {
            let segment = sparse.map.segments.get(sparse.segment);
            let hole_end = segment.map_or(sparse.map.size, |segment| segment.start);
            let rest = &mut buffer[filled..];
            if sparse.position < hole_end {
                let amount = bounded(hole_end - sparse.position, rest.len());
                rest[..amount].fill(0);
                filled += amount;
                sparse.position += amount as u64;
                continue;
            }
            let end = segment.map_or(sparse.map.size, |segment| segment.end);
            let amount = bounded(end - sparse.position, rest.len());
            let read = self.read_stored(source, &mut rest[..amount])?;
            if read == 0 {
                return Err(damaged("the archive holds less than its ranges"));
            }
            filled += read;
            sparse.position += read as u64;
            sparse.segment += usize::from(sparse.position == end);
        }
        // told with the last bytes, as a caller that knows the size does not ask for more
        if sparse.position == sparse.map.size && self.stored > 0 {
            return Err(damaged("the archive holds more than its ranges"));
        }
        Ok(filled)
    }
}

fn bounded(amount: u64, limit: usize) -> usize {
    usize::try_from(amount).unwrap_or(usize::MAX).min(limit)
}
