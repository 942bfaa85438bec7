//! Reads tar archives as Go's `archive/tar` does: image layers come from many builders, and what they have in common is
//! that Go programs (Docker, containerd, CRI-O) read them.
//!
//! ```text
//! source -> reader   blocks, meta headers, content          header   one block of 512 bytes
//!                    and padding; one entry at a time       pax      records of an extended header
//!                                                           sparse   maps of files with holes
//!                                                           content  bytes of the current entry
//!                                                           number   numbers and times as text
//! ```
//!
//! Called by `convert`, in a jailed process with one thread: the module uses nothing else of this crate, and
//! memory is bounded whatever the archive says. An extended header, a long name and a sparse map may each take 1 MiB of the
//! archive; content goes into the caller's buffer directly.
//!
//! It must not interpret names: they are bytes as the archive has them, absolute or with `..` where the archive says so.
//!
//! [`Archive::next`] lists the few differences from Go's reader.

#[cfg(test)]
pub(crate) mod build;
mod content;
mod header;
mod number;
mod pax;
mod reader;
mod sparse;

pub use number::Time;
pub use reader::Archive;

use header::Header;
use pax::Records;
use std::io;

/// Largest extended header, long name or sparse map, in bytes of the archive. Go's and libarchive's bound.
pub const LARGEST_EXTENSION: u64 = 1 << 20;

/// An entry of an archive, with what its extended headers say already applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as the archive has it. It may be empty, absolute, or lead out of any root.
    pub name: Vec<u8>,
    /// What the entry makes.
    pub kind: Kind,
    /// Permission, setuid, setgid and sticky bits (`07777`).
    pub mode: u32,
    /// Owner. Archives may hold negative values and values above 32 bits.
    pub uid: i64,
    /// Group, with the range of `uid`.
    pub gid: i64,
    /// Time of the last modification.
    pub mtime: Time,
    /// Bytes that [`Archive::read`] yields, holes included. 0 for the kinds that have no content.
    pub size: u64,
    /// Target of a link, empty for other kinds unless the archive gives them one.
    pub link: Vec<u8>,
    /// Major and minor number of a device. Negative numbers wrap, as in a conversion to `dev_t`.
    pub device: (u64, u64),
    /// Extended attributes (`SCHILY.xattr.` records) by name without the prefix, sorted, each name once. Values may be
    /// empty.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Kinds of entries. Sparse and contiguous files are [`Kind::File`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an earlier entry, or of a file below the layer.
    HardLink,
    /// A symbolic link.
    SymbolicLink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
    /// Any other type byte. `g` is a global extended header: its records apply to no entry, and callers pass over it.
    Other(u8),
}

impl Entry {
    /// The entry of a global header, which has only a name and the records. Go passes over records that it cannot read,
    /// as it applies none of them.
    fn global(name: Vec<u8>, records: Records) -> Self {
        let mut read = Header { kind: header::GLOBAL, name, ..Header::default() };
        let records = records.apply(&mut read).map_or_else(|_| Records::default(), |()| records);
        Self::new(Header { kind: header::GLOBAL, name: read.name, ..Header::default() }, records)
    }

    fn new(header: Header, records: Records) -> Self {
        Self {
            kind: Kind::of(header.kind),
            mode: u32::try_from(header.mode & 0o7777).unwrap_or(0),
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            // the reader has refused a negative size of a kind with content
            size: header.content_size().unwrap_or(0),
            device: (header.device.0.cast_unsigned(), header.device.1.cast_unsigned()),
            name: header.name,
            link: header.link,
            attributes: records.into_attributes(),
        }
    }
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            header::FILE | header::CONTIGUOUS | header::SPARSE => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::SymbolicLink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
            header::DIRECTORY => Self::Directory,
            b'6' => Self::Fifo,
            other => Self::Other(other),
        }
    }
}

/// Errors of reading an archive. Positions count bytes of the uncompressed archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A block that is no header, or one with a field that cannot be read.
    #[error("tar header at byte {at} is damaged: {reason}; build the layer again")]
    Header {
        /// Position of the header.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An extended header (pax) that breaks the format.
    #[error("extended tar header at byte {at} is damaged: {reason}; build the layer again")]
    Extension {
        /// Position of the header that the extension follows.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An extended header, long name or sparse map beyond [`LARGEST_EXTENSION`].
    #[error(
        "extended tar header at byte {at} is larger than {LARGEST_EXTENSION} bytes: shorten the entry's name, \
         attributes or list of holes"
    )]
    TooLarge {
        /// Position of the entry's header.
        at: u64,
    },
    /// A map of holes that contradicts itself or the size of its file.
    #[error(
        "sparse file at byte {at} has a damaged map: {reason}; pack it with a current tar, or without --sparse"
    )]
    SparseMap {
        /// Position of the entry's header.
        at: u64,
        /// What is wrong with the map.
        reason: &'static str,
    },
    /// The source ends inside an entry.
    #[error("tar archive ends at byte {at}, inside an entry: build or push the layer again")]
    Truncated {
        /// Length of the source.
        at: u64,
    },
    /// Reading goes on after an error.
    #[error("tar archive cannot be read further after an error at or before byte {at}")]
    Failed {
        /// Bytes read when the first error occurred, or a little more.
        at: u64,
    },
    /// The source cannot be read.
    #[error("cannot read the tar archive: {0}")]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests;
