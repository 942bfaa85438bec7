//! Why a layer cannot become a file system.
//!
//! Made by all of `convert`; the text of one goes from the jail to the daemon, which puts the layer's digest before it.

use crate::image::erofs::{ErofsError, WriteError};
use crate::image::tar::TarError;

/// Longest part of a name in an error text, in bytes.
const LONGEST_SHOWN: usize = 300;

/// Failures of a conversion.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The archive itself is damaged.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// An entry cannot be kept as the archive has it.
    #[error("entry {name}: {fault}")]
    Entry {
        /// The entry's name, escaped and shortened.
        name: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The layers below, which the archive refers to, are not to be had.
    #[error("the layers below it are not available: {0}")]
    Lower(std::io::Error),
    /// A layer below cannot be read.
    #[error("a layer below it cannot be read: {0}; remove the image and pull it again")]
    LowerImage(#[from] ErofsError),
    /// Names would fill memory.
    #[error("its names take more than {0} bytes of memory: split the layer")]
    TooManyNames(usize),
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A part of its path is something else in this layer.
    #[error("{0} is not a directory")]
    NotADirectory(String),
    /// Its path goes through more symbolic links than Linux follows.
    #[error("its path goes through more than {0} symbolic links")]
    TooManyLinks(usize),
    /// A part of its path is too long for any Linux file system.
    #[error("a part of its name is longer than 255 bytes")]
    NameTooLong,
    /// Its path has more components, links followed, than any that Linux takes.
    #[error("its path has more than {0} components")]
    PathTooLong(usize),
    /// Its path leads through directories of too many lower layers.
    #[error(
        "looking its path up takes more than {0} lookups in the layers below it, for a directory counts once for each layer \
         that has it: shorten the path, or the links that it goes through"
    )]
    TooManyLookups(usize),
    /// A symbolic link that no file system can hold.
    #[error("the target of the symbolic link is empty or longer than 4095 bytes")]
    BadTarget,
    /// `.wh.` without a name, or with `.` or `..`.
    #[error("a whiteout needs the name of a file")]
    BadWhiteout,
    /// A hard link to nothing.
    #[error("hard link to {0}, which neither this layer nor one below it has")]
    NoTarget(String),
    /// A hard link to a directory.
    #[error("hard link to {0}, which is a directory")]
    TargetIsDirectory(String),
    /// An owner that Linux cannot have.
    #[error("owner {uid}:{gid} is out of range: each must be 0 to 4294967294")]
    Owner {
        /// User id.
        uid: i64,
        /// Group id.
        gid: i64,
    },
    /// A device number that Linux cannot have.
    #[error("device {major}:{minor} is out of range: at most 4095:1048575")]
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// A kind of entry that no container runtime unpacks.
    #[error("entries of type {0:?} are not supported: pack the layer with a current tar, in pax format")]
    UnknownKind(char),
}

impl ConvertError {
    /// A fault of the entry `name`.
    pub fn entry(name: &[u8], fault: Fault) -> Self {
        Self::Entry { name: shown(name), fault }
    }
}

/// A name for an error text: escaped, and cut after [`LONGEST_SHOWN`] bytes.
pub fn shown(name: &[u8]) -> String {
    let (name, more) = if name.len() > LONGEST_SHOWN { (&name[..LONGEST_SHOWN], "...") } else { (name, "") };
    format!("\"{}\"{more}", name.escape_ascii())
}
