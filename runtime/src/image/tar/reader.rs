//! The archive as a sequence of entries. Headers that describe the next entry (pax, GNU's long names) are applied to it, in
//! Go's order: the header, then pax records, then long names, then the name of a sparse file.
//!
//! Called by `convert`. One entry at a time: its content is read, or passed over, before the next.

use super::content::{Content, Source};
use super::header::{
    BLOCK, Block, DIRECTORY, EXTENDED, FILE, Format, GLOBAL, Header, LONG_LINK, LONG_NAME, SPARSE, format,
};
use super::number::{c_string, decimal};
use super::pax::Records;
use super::sparse::{Announced, Map, MapInContent, OldMap, map_in_records};
use super::{Entry, LARGEST_EXTENSION, TarError};
use std::io::Read;

const ZEROS: Block = [0; BLOCK];

/// Bytes of the header in which the old sparse format's map begins: they count towards its bound.
const OLD_MAP_IN_HEADER: u64 = 97;

/// Reads an archive from `R`, which is asked for 512 bytes at least, or for what the caller's buffer takes: hand in a
/// `BufReader` over a slow source.
pub struct Archive<R> {
    source: Source<R>,
    content: Content,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Reading,
    Ended,
    Failed,
}

/// What the meta headers before an entry say about it. Empty means that there is none.
#[derive(Default)]
struct Meta {
    records: Records,
    name: Vec<u8>,
    link: Vec<u8>,
}

impl<R: Read> Archive<R> {
    /// An archive from its beginning. Nothing is read yet.
    pub fn new(source: R) -> Self {
        Self { source: Source::new(source), content: Content::default(), state: State::Reading }
    }

    /// Gives the next entry, or None at the end of the archive: two blocks of zeros, or the end of the source where a header
    /// is expected, in the padding before it, or after one block of zeros. Content of the former entry that was not read is
    /// passed over.
    ///
    /// Kinds differ from Go's in that sparse (`S`) and contiguous (`7`) files are files. Owner and group names, access
    /// and change times are not given.
    ///
    /// # Errors
    /// Damage that Go's reader refuses as well; errors of the source. After an error all calls fail.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not lend the content of its current item"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        match self.state {
            State::Ended => return Ok(None),
            State::Failed => return Err(TarError::Failed { at: self.position() }),
            State::Reading => {}
        }
        let result = self.advance();
        self.state = match result {
            Ok(Some(_)) => State::Reading,
            Ok(None) => State::Ended,
            Err(_) => State::Failed,
        };
        result
    }

    /// Reads content of the current entry, holes of sparse files as zeros. 0 at its end.
    ///
    /// # Errors
    /// The end of the source inside the content; a sparse map that claims more or less than the archive holds (with the
    /// last bytes of the file at the latest); errors of the source. After an error all calls fail.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        if matches!(self.state, State::Failed) {
            return Err(TarError::Failed { at: self.position() });
        }
        let result = self.content.read(&mut self.source, buffer);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// Reads the source to its end. What follows an archive does not belong to it and may be anything.
    ///
    /// # Errors
    /// Those of the source.
    pub fn finish(mut self) -> Result<(), TarError> {
        self.source.skip(u64::MAX)?;
        Ok(())
    }

    /// Gives the number of bytes that were read from the source.
    pub fn position(&self) -> u64 {
        self.source.position()
    }

    fn advance(&mut self) -> Result<Option<Entry>, TarError> {
        let mut meta = Meta::default();
        loop {
            if !self.skip_content()? {
                return Ok(None);
            }
            let at = self.position();
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = Header::parse(&block).map_err(|reason| TarError::Header { at, reason })?;
            self.set_content(at, &header)?;
            match header.kind {
                EXTENDED => meta.records = self.records(at)?,
                GLOBAL => return Ok(Some(Entry::global(header.name, self.records(at)?))),
                LONG_NAME => meta.name = c_string(&self.extension(at)?).to_owned(),
                LONG_LINK => meta.link = c_string(&self.extension(at)?).to_owned(),
                _ => return self.entry(at, header, &block, meta).map(Some),
            }
        }
    }

    /// Passes over the rest of the current entry. False where the source ends in its padding.
    fn skip_content(&mut self) -> Result<bool, TarError> {
        let (stored, padding) = self.content.stored();
        self.content = Content::default();
        if self.source.skip(stored)? < stored {
            return Err(TarError::Truncated { at: self.position() });
        }
        Ok(self.source.skip(padding)? == padding)
    }

    /// Reads the next header, or finds the end of the archive.
    fn header_block(&mut self) -> Result<Option<Block>, TarError> {
        let at = self.position();
        let Some(first) = self.whole_block()? else { return Ok(None) };
        if first != ZEROS {
            return Ok(Some(first));
        }
        match self.whole_block()? {
            None | Some(ZEROS) => Ok(None),
            Some(_) => Err(TarError::Header { at, reason: "it is zeros, and the archive goes on after it" }),
        }
    }

    /// Reads a block, or finds that the source has ended before it.
    fn whole_block(&mut self) -> Result<Option<Block>, TarError> {
        let mut block = ZEROS;
        match self.source.fill(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(TarError::Truncated { at: self.position() }),
        }
    }

    fn set_content(&mut self, at: u64, header: &Header) -> Result<(), TarError> {
        let size = header.content_size().ok_or(TarError::Header { at, reason: "its size is negative" })?;
        self.content = Content::new(at, size);
        Ok(())
    }

    /// Reads the content of a meta header.
    fn extension(&mut self, at: u64) -> Result<Vec<u8>, TarError> {
        let (size, _) = self.content.stored();
        if size > LARGEST_EXTENSION {
            return Err(TarError::TooLarge { at });
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| TarError::TooLarge { at })?];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn records(&mut self, at: u64) -> Result<Records, TarError> {
        Records::parse(&self.extension(at)?).map_err(|reason| TarError::Extension { at, reason })
    }

    /// Fills the buffer with content as the archive holds it.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.content.read_stored(&mut self.source, &mut buffer[filled..])? {
                0 => return Err(TarError::Truncated { at: self.position() }),
                read => filled += read,
            }
        }
        Ok(())
    }

    /// Makes an entry of its header, which stands in `block`, and of the meta headers before it.
    fn entry(&mut self, at: u64, mut header: Header, block: &Block, meta: Meta) -> Result<Entry, TarError> {
        meta.records.apply(&mut header).map_err(|reason| TarError::Extension { at, reason })?;
        for (long, field) in [(meta.name, &mut header.name), (meta.link, &mut header.link)] {
            if !long.is_empty() {
                *field = long;
            }
        }
        if header.kind == 0 {
            // before POSIX, a directory was a file whose name ends in a slash
            header.kind = if header.name.ends_with(b"/") { DIRECTORY } else { FILE };
        }
        self.set_content(at, &header)?;
        let ranges = if header.kind == SPARSE {
            Some(self.old_map(at, &mut header, block)?)
        } else {
            self.announced_map(at, &mut header, &meta.records)?
        };
        if let Some(ranges) = ranges {
            let damaged = |reason| TarError::SparseMap { at, reason };
            if header.is_header_only() {
                return Err(damaged("the entry is of a kind that has no content"));
            }
            self.content.set_map(Map::new(ranges, header.size).map_err(damaged)?);
        }
        Ok(Entry::new(header, meta.records))
    }

    /// Reads the map of the old GNU format, and sets the size with the holes.
    fn old_map(&mut self, at: u64, header: &mut Header, block: &Block) -> Result<Vec<(i64, i64)>, TarError> {
        let damaged = |reason| TarError::SparseMap { at, reason };
        if format(block) != Some(Format::Gnu) {
            return Err(damaged("it is not in GNU tar's format"));
        }
        let mut map = OldMap::in_header(block).map_err(damaged)?;
        header.size = map.size;
        let mut taken = OLD_MAP_IN_HEADER;
        while map.continues {
            let mut next = ZEROS;
            if self.source.fill(&mut next)? < BLOCK {
                return Err(TarError::Truncated { at: self.position() });
            }
            taken += BLOCK as u64;
            if taken >= LARGEST_EXTENSION {
                return Err(TarError::TooLarge { at });
            }
            map.push(&next).map_err(damaged)?;
        }
        Ok(map.ranges)
    }

    /// Reads the map that the records announce, if they do, and sets the name and the size that they give.
    fn announced_map(
        &mut self,
        at: u64,
        header: &mut Header,
        records: &Records,
    ) -> Result<Option<Vec<(i64, i64)>>, TarError> {
        let damaged = |reason| TarError::SparseMap { at, reason };
        let announced = Announced::by(records);
        if matches!(announced, Announced::None) {
            return Ok(None);
        }
        if !records.get("GNU.sparse.name").is_empty() {
            records.get("GNU.sparse.name").clone_into(&mut header.name);
        }
        let sizes = ["GNU.sparse.size", "GNU.sparse.realsize"].map(|key| records.get(key));
        if let Some(size) = sizes.into_iter().find(|size| !size.is_empty()) {
            header.size = decimal(size).ok_or(damaged("the size of the file is no number"))?;
        }
        if matches!(announced, Announced::InRecords) {
            return map_in_records(records).map(Some).map_err(damaged);
        }
        let mut map = MapInContent::default();
        let mut block = ZEROS;
        for _ in 0..LARGEST_EXTENSION / BLOCK as u64 {
            self.fill(&mut block)?;
            if map.push(&block).map_err(damaged)? {
                return Ok(Some(map.into_ranges()));
            }
        }
        Err(TarError::TooLarge { at })
    }
}
