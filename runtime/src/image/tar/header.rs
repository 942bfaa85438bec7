//! One header block: its checksum, its format, and the fields at that format's places.
//!
//! Called by `reader`. A header says nothing final: extended headers may replace name, link, owner, time and size.

use super::number::{Time, c_string, numeric, octal};
use std::ops::Range;

pub(super) const BLOCK: usize = 512;

/// A block of an archive. Headers take one, content is padded to whole ones.
pub(super) type Block = [u8; BLOCK];

/// Type bytes. `1` to `6` have no content, whatever their size says.
pub(super) const FILE: u8 = b'0';
pub(super) const DIRECTORY: u8 = b'5';
pub(super) const CONTIGUOUS: u8 = b'7';
pub(super) const SPARSE: u8 = b'S';
pub(super) const EXTENDED: u8 = b'x';
pub(super) const GLOBAL: u8 = b'g';
pub(super) const LONG_NAME: u8 = b'L';
pub(super) const LONG_LINK: u8 = b'K';

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;
const USTAR_PREFIX: Range<usize> = 345..500;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_CTIME: Range<usize> = 488..500;
const STAR_TRAILER: Range<usize> = 508..512;

/// Layout of the bytes after the oldest header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Unix V7: nothing is there.
    V7,
    /// POSIX, which pax extends.
    Ustar,
    /// GNU tar and Go's writer for what ustar cannot hold.
    Gnu,
    /// Schily's star.
    Star,
}

/// A header's fields. `kind` is the type byte as it is.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: Time,
    pub device: (i64, i64),
}

impl Header {
    /// Reads a block that is not all zeros. The error says what is wrong with it.
    pub(super) fn parse(block: &Block) -> Result<Self, &'static str> {
        let format =
            format(block).ok_or("its checksum is wrong, so this is no tar archive or bytes are missing")?;
        let mut header = Self {
            kind: block[KIND],
            name: c_string(&block[NAME]).to_owned(),
            link: c_string(&block[LINK]).to_owned(),
            mode: numeric(&block[MODE]).ok_or("its mode is no number")?,
            uid: numeric(&block[UID]).ok_or("its owner is no number")?,
            gid: numeric(&block[GID]).ok_or("its group is no number")?,
            size: numeric(&block[SIZE]).ok_or("its size is no number")?,
            mtime: Time { seconds: numeric(&block[MTIME]).ok_or("its time is no number")?, nanoseconds: 0 },
            device: (0, 0),
        };
        if format == Format::V7 {
            return Ok(header);
        }
        let number = |field| numeric(&block[field]).ok_or("its device is no number");
        header.device = (number(DEVICE_MAJOR)?, number(DEVICE_MINOR)?);
        let prefix = prefix(block, format)?;
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }

    /// Whether the kind has no content, whatever the size says.
    pub(super) fn is_header_only(&self) -> bool {
        matches!(self.kind, b'1'..=b'6')
    }

    /// Bytes of content by the size that the header has at the time. None for a negative size.
    pub(super) fn content_size(&self) -> Option<u64> {
        if self.is_header_only() { Some(0) } else { u64::try_from(self.size).ok() }
    }
}

/// Checks the checksum and tells the layout from the magic values. None where the checksum is wrong.
pub(super) fn format(block: &Block) -> Option<Format> {
    let (unsigned, signed) = checksums(block);
    let stored = octal(&block[CHECKSUM])?;
    if stored != unsigned && stored != signed {
        return None;
    }
    Some(match (&block[MAGIC], &block[VERSION], &block[STAR_TRAILER]) {
        (b"ustar\0", _, b"tar\0") => Format::Star,
        (b"ustar\0", _, _) => Format::Ustar,
        (b"ustar ", b" \0", _) => Format::Gnu,
        _ => Format::V7,
    })
}

/// Sums the bytes with the checksum as spaces: unsigned as POSIX has it, and signed as old Sun tars wrote it.
fn checksums(block: &Block) -> (i64, i64) {
    let sum = |bytes: &[u8]| {
        bytes.iter().fold((0, 0), |(unsigned, signed), byte| {
            (unsigned + i64::from(*byte), signed + i64::from(byte.cast_signed()))
        })
    };
    let (whole, field) = (sum(block), sum(&block[CHECKSUM]));
    let spaces = i64::from(b' ') * CHECKSUM.len() as i64;
    (whole.0 - field.0 + spaces, whole.1 - field.1 + spaces)
}

/// The directory part of a name that does not fit its field.
fn prefix(block: &Block, format: Format) -> Result<&[u8], &'static str> {
    Ok(match format {
        Format::V7 => b"",
        Format::Ustar => c_string(&block[USTAR_PREFIX]),
        Format::Star => {
            for field in [STAR_ATIME, STAR_CTIME] {
                numeric(&block[field]).ok_or("its access or change time is no number")?;
            }
            c_string(&block[STAR_PREFIX])
        }
        // The format has times at this place. Go's writer before 1.8 put a prefix there, so times that are no numbers
        // are taken for text (golang.org/issue/12594, golang.org/issue/21005).
        Format::Gnu => {
            let is_time = |field: Range<usize>| block[field.start] == 0 || numeric(&block[field]).is_some();
            let text = c_string(&block[USTAR_PREFIX]);
            if (is_time(GNU_ATIME) && is_time(GNU_CTIME)) || !text.is_ascii() { b"" } else { text }
        }
    })
}
