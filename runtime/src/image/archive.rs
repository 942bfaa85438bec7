//! What of a tar archive may reach the converter. mkfs.erofs 1.8 leaves out entries that it does not know without a word,
//! waits for ever for the rest of a file that breaks off, and takes a size for granted where none belongs; so each header
//! is looked at on its way:
//!
//! - kinds of entries that would be lost are refused, and the old spelling of a regular file is rewritten;
//! - an archive that breaks off, or whose headers are damaged, is refused with the place;
//! - extended attributes that no EROFS holds, or that only overlayfs itself may write, are masked;
//! - everything else, file contents above all, passes as it is.
//!
//! Used by `pump` as the writer before the pipe. Formats: POSIX.1-2017 `pax`, GNU tar's long names.

use std::io::{self, Write};

const BLOCK: usize = 512;

/// Largest header extension (long names, attributes), in bytes.
const LARGEST_EXTENSION: u64 = 1 << 20;

/// What is wrong with an archive, and at which byte of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// A header that is none.
    #[error("is no tar archive: damaged header at byte {0}")]
    BadHeader(u64),
    /// A kind of entry that cannot be kept.
    #[error("entry at byte {at} is {what}: pack the layer with a current tar, in pax format")]
    UnknownKind {
        /// Where its header is.
        at: u64,
        /// Which kind it is.
        what: String,
    },
    /// An extension that cannot be read.
    #[error("damaged extended header at byte {0}")]
    BadExtension(u64),
    /// An extension that would fill memory.
    #[error("extended header at byte {0} is larger than {LARGEST_EXTENSION} bytes")]
    LargeExtension(u64),
    /// The end is missing.
    #[error("breaks off after {0} bytes, in the middle of an entry")]
    BreaksOff(u64),
}

/// A writer that checks the archive written to it and passes it on.
pub struct Archive<W> {
    sink: W,
    state: State,
    /// Bytes of the archive so far.
    at: u64,
    /// The header or extension that is being gathered.
    gathered: Vec<u8>,
    /// Size of the next entry's content by its extended header, where that has one.
    size_override: Option<u64>,
    extended: bool,
}

enum State {
    Header { end_blocks: u8 },
    Extension { padded: usize, size: usize, begun_at: u64 },
    Content { padded: u64 },
    End,
}

impl<W: Write> Archive<W> {
    /// An archive from its beginning, on its way to `sink`.
    pub fn new(sink: W) -> Self {
        let state = State::Header { end_blocks: 0 };
        Self { sink, state, at: 0, gathered: Vec::new(), size_override: None, extended: false }
    }

    /// The archive has ended: passes on its end marker, which some writers leave out.
    ///
    /// # Errors
    /// [`ArchiveError::BreaksOff`] within an error of kind `InvalidData`; those of the sink.
    pub fn finish(mut self) -> io::Result<W> {
        let whole = match self.state {
            State::End => return Ok(self.sink),
            State::Header { .. } => self.gathered.iter().all(|byte| *byte == 0) && !self.extended,
            State::Content { padded } => padded == 0,
            State::Extension { .. } => false,
        };
        if !whole {
            return Err(invalid(ArchiveError::BreaksOff(self.at)));
        }
        self.sink.write_all(&[0; 2 * BLOCK])?;
        Ok(self.sink)
    }

    fn header(&mut self, end_blocks: u8) -> io::Result<()> {
        let at = self.at - BLOCK as u64;
        if self.gathered.iter().all(|byte| *byte == 0) {
            self.state =
                if end_blocks == 1 { State::End } else { State::Header { end_blocks: end_blocks + 1 } };
            return self.sink.write_all(&self.gathered);
        }
        let header = <&mut [u8; BLOCK]>::try_from(self.gathered.as_mut_slice())
            .expect("headers are gathered to the length of a block");
        if !has_good_checksum(header) || &header[257..262] != b"ustar" {
            return Err(invalid(ArchiveError::BadHeader(at)));
        }
        let declared = number(&header[124..136]).ok_or_else(|| invalid(ArchiveError::BadHeader(at)))?;
        let kind = header[156];
        let size = match kind {
            b'x' | b'g' | b'L' | b'K' => {
                // mkfs.erofs would take the override for the size of this extension
                if self.size_override.is_some() {
                    return Err(invalid(ArchiveError::BadExtension(at)));
                }
                if declared > LARGEST_EXTENSION {
                    return Err(invalid(ArchiveError::LargeExtension(at)));
                }
                self.extended |= kind != b'g';
                declared
            }
            0 => {
                header[156] = if name_is_directory(header) { b'5' } else { b'0' };
                if header[156] == b'5' { 0 } else { self.size_override.unwrap_or(declared) }
            }
            b'0' | b'7' => self.size_override.unwrap_or(declared),
            b'1'..=b'6' => 0,
            other => return Err(invalid(ArchiveError::UnknownKind { at, what: kind_name(other) })),
        };
        if matches!(header[156], b'1'..=b'6') {
            if self.size_override.is_some_and(|size| size != 0) {
                return Err(invalid(ArchiveError::BadExtension(at)));
            }
            header[124..136].copy_from_slice(b"00000000000\0");
        }
        write_checksum(header);
        self.sink.write_all(&self.gathered)?;
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| invalid(ArchiveError::BadHeader(at)))?;
        self.state = if matches!(kind, b'x' | b'g' | b'L' | b'K') {
            let fits = "extensions are bounded above";
            let padded = usize::try_from(padded).expect(fits);
            let size = usize::try_from(size).expect(fits);
            // names pass as they are; attributes are looked at
            if matches!(kind, b'x' | b'g') {
                State::Extension { padded, size, begun_at: at }
            } else {
                State::Content { padded: padded as u64 }
            }
        } else {
            (self.size_override, self.extended) = (None, false);
            State::Content { padded }
        };
        Ok(())
    }

    /// An extended header: `LENGTH KEY=VALUE\n`, again and again.
    fn extension(&mut self, size: usize, begun_at: u64) -> io::Result<()> {
        let bad = || invalid(ArchiveError::BadExtension(begun_at));
        let mut records = &mut self.gathered[..size];
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length =
                std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let length =
                length.filter(|length| *length > space + 1 && *length <= records.len()).ok_or_else(bad)?;
            let (record, rest) = std::mem::take(&mut records).split_at_mut(length);
            records = rest;
            let record = &mut record[space + 1..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            if record.last() != Some(&b'\n') {
                return Err(bad());
            }
            let (key, value) = record.split_at_mut(equals);
            if key == b"size" {
                let text = std::str::from_utf8(&value[1..value.len() - 1]).ok();
                self.size_override = Some(text.and_then(|text| text.parse().ok()).ok_or_else(bad)?);
            } else if key.starts_with(b"GNU.sparse.") {
                let what = "a sparse file".to_owned();
                return Err(invalid(ArchiveError::UnknownKind { at: begun_at, what }));
            } else if attribute(key).is_some_and(|name| !is_kept(name)) {
                // a keyword that nobody knows, of the same length: mkfs.erofs passes over it
                key[0] = b'X';
            }
        }
        self.sink.write_all(&self.gathered)?;
        self.state = State::Header { end_blocks: 0 };
        Ok(())
    }

    /// Gathers up to `wanted` bytes; whether they are all there.
    fn gather(&mut self, bytes: &mut &[u8], wanted: usize) -> bool {
        let take = (wanted - self.gathered.len()).min(bytes.len());
        self.gathered.extend_from_slice(&bytes[..take]);
        self.at += take as u64;
        *bytes = &bytes[take..];
        self.gathered.len() == wanted
    }
}

impl<W: Write> Write for Archive<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.state {
                State::Header { end_blocks } => {
                    if self.gather(&mut rest, BLOCK) {
                        let result = self.header(end_blocks);
                        self.gathered.clear();
                        result?;
                    }
                }
                State::Extension { padded, size, begun_at } => {
                    if self.gather(&mut rest, padded) {
                        let result = self.extension(size, begun_at);
                        self.gathered.clear();
                        result?;
                    }
                }
                State::Content { padded: 0 } => self.state = State::Header { end_blocks: 0 },
                State::Content { ref mut padded } => {
                    let take = usize::try_from(*padded).unwrap_or(usize::MAX).min(rest.len());
                    *padded -= take as u64;
                    self.sink.write_all(&rest[..take])?;
                    self.at += take as u64;
                    rest = &rest[take..];
                }
                // whatever follows the end marker is no part of the archive
                State::End => rest = &[],
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

fn invalid(error: ArchiveError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The attribute's name in the keyword of an extended header.
fn attribute(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(b"SCHILY.xattr.").or_else(|| key.strip_prefix(b"LIBARCHIVE.xattr."))
}

/// Attributes that EROFS holds, less those with which overlayfs keeps its own books.
fn is_kept(name: &[u8]) -> bool {
    let known: [&[u8]; 5] =
        [b"user.", b"trusted.", b"security.", b"system.posix_acl_access", b"system.posix_acl_default"];
    known.iter().any(|prefix| name.starts_with(prefix))
        && !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
}

fn kind_name(kind: u8) -> String {
    match kind {
        b'S' => "a sparse file of GNU tar".to_owned(),
        b'M' => "a file that continues from another volume".to_owned(),
        kind => format!("of unknown kind {:?}", char::from(kind)),
    }
}

/// Before POSIX, a directory was a file whose name ends in a slash.
fn name_is_directory(header: &[u8; BLOCK]) -> bool {
    header[..100].iter().take_while(|byte| **byte != 0).last() == Some(&b'/')
}

/// A number in octal, or in base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..]
            .iter()
            .try_fold(first, |value, byte| Some(value.checked_mul(256)? | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn checksum(header: &[u8; BLOCK]) -> u64 {
    let field = 148..156;
    header
        .iter()
        .enumerate()
        .map(|(at, byte)| u64::from(if field.contains(&at) { b' ' } else { *byte }))
        .sum()
}

fn has_good_checksum(header: &[u8; BLOCK]) -> bool {
    number(&header[148..156]) == Some(checksum(header))
}

fn write_checksum(header: &mut [u8; BLOCK]) {
    let text = format!("{:06o}\0 ", checksum(header));
    header[148..156].copy_from_slice(text.as_bytes());
}

#[cfg(test)]
#[path = "archive_tests.rs"]
pub(super) mod tests;
