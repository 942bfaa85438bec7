//! Why a layer's EROFS file could not be read.

use std::io;

/// Errors of [`Erofs`](super::Erofs), grouped by what is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The file could not be read, or ends before a byte that it refers to.
    #[error("cannot read EROFS image at byte {offset}: {source}")]
    Io {
        /// Position of the first byte that was wanted.
        offset: u64,
        /// The cause; `UnexpectedEof` where the file ends earlier.
        source: io::Error,
    },
    /// The superblock is missing or makes no sense.
    #[error("not an EROFS image: {0}; remove the image and pull it again")]
    NotErofs(String),
    /// The image uses a part of the format that layers never have.
    #[error("unsupported EROFS image: {0}; layers have no compression; remove the image and pull it again")]
    Unsupported(String),
    /// An inode, or what it refers to, contradicts itself.
    #[error("corrupt EROFS image: inode {inode}: {reason}; remove the image and pull it again")]
    Corrupt {
        /// Number of the inode.
        inode: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The caller asked for what this kind of inode does not have, such as the entries of a file.
    #[error("cannot read inode {inode} of EROFS image: it is not a {expected}")]
    WrongKind {
        /// Number of the inode.
        inode: u64,
        /// The kind that the call needs.
        expected: &'static str,
    },
}

/// A [`ErofsError::Corrupt`] of `inode`.
pub fn corrupt(inode: u64, reason: &'static str) -> ErofsError {
    ErofsError::Corrupt { inode, reason }
}
