//! The pod's disk as a table of extents: which file lies behind which range of the disk's address space.
//!
//! The control thread attaches and detaches while the event loop thread reads and writes. A request holds the extents
//! that it works on, so a file that is detached under it stays open until the request is done, and a new extent that
//! takes the same range cannot be touched by it. The worker flushes what is marked as written to. Freed ranges are taken again only after the whole space was used once.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use serde::{Deserialize, Serialize};

/// The disk's size in bytes. All of it is address space; only attached extents answer.
pub const DISK_BYTES: u64 = 1 << 46;
/// Smallest unit of a request, in bytes.
pub const SECTOR: u64 = 512;
/// Extents start at multiples of it, in bytes.
pub const ALIGNMENT: u64 = 1 << 20;
/// Most extents of one disk: every one costs a descriptor.
pub const MAX_EXTENTS: usize = 1024;

/// Why a file was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum ExtentError {
    /// Zero, odd, or more than the disk.
    #[error(
        "extent of {0} bytes: the length must be a multiple of {SECTOR} and at most the disk's {DISK_BYTES}"
    )]
    Length(u64),
    /// Not something with blocks.
    #[error("extent file is neither a regular file nor a block device")]
    FileType,
    /// Its descriptor does not allow what the extent should.
    #[error("extent file is not open for {0}: open it so, or attach it read-only")]
    Access(&'static str),
    /// Too many, or too large together.
    #[error("disk has no room for {length} bytes beside its {extents} extents: detach some")]
    Full {
        /// What was asked for.
        length: u64,
        /// How many there are.
        extents: usize,
    },
    /// Nothing starts there.
    #[error("no extent starts at offset {0}")]
    Unknown(u64),
    /// A saved table that cannot be.
    #[error("saved extents overlap, are misaligned, or are not as many as their files")]
    Saved,
    /// The descriptor could not be examined.
    #[error("cannot examine the extent's file: {0}")]
    System(#[from] io::Error),
}

/// A file behind a range of the disk.
pub struct Extent {
    file: OwnedFd,
    length: u64,
    read_only: bool,
    /// Written to since a flush began last.
    dirty: AtomicBool,
}

impl Extent {
    fn new(file: OwnedFd, length: u64, read_only: bool) -> Result<Arc<Self>, ExtentError> {
        if length == 0 || !length.is_multiple_of(SECTOR) || length > DISK_BYTES {
            return Err(ExtentError::Length(length));
        }
        let mode = SFlag::from_bits_truncate(fstat(&file).map_err(io::Error::from)?.st_mode) & SFlag::S_IFMT;
        if mode != SFlag::S_IFREG && mode != SFlag::S_IFBLK {
            return Err(ExtentError::FileType);
        }
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(io::Error::from)?;
        match OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE {
            OFlag::O_RDWR => {}
            OFlag::O_RDONLY if read_only => {}
            OFlag::O_RDONLY => return Err(ExtentError::Access("writing")),
            _ => return Err(ExtentError::Access("reading")),
        }
        Ok(Arc::new(Self { file, length, read_only, dirty: AtomicBool::new(false) }))
    }

    /// The file, to read from.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The file, to change; `None` if the extent is read-only.
    pub fn file_to_change(&self) -> Option<BorrowedFd<'_>> {
        if self.read_only {
            return None;
        }
        Some(self.file.as_fd())
    }

    /// Notes that the file was changed. Called after the change and before the guest is told of it: a flush that took the mark
    /// away meanwhile might not have all of the change.
    pub fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }
}

/// A part of a request that lies in one extent.
pub struct Piece {
    /// Where.
    pub extent: Arc<Extent>,
    /// First byte in the extent's file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// An extent as it is saved: its file is given again when the VM is built from the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentState {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The guest may only read.
    pub read_only: bool,
}

#[derive(Default)]
struct Table {
    extents: BTreeMap<u64, Arc<Extent>>,
    /// Where to look for room first.
    next: u64,
}

/// All extents of a disk.
#[derive(Default)]
pub struct Extents {
    table: RwLock<Table>,
}

impl Extents {
    /// An empty disk. The first extent attached gets offset 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk as it was saved, with the files of its extents in the same order.
    pub fn restore(saved: &[ExtentState], files: Vec<OwnedFd>) -> Result<Self, ExtentError> {
        if saved.len() != files.len() || saved.len() > MAX_EXTENTS {
            return Err(ExtentError::Saved);
        }
        let mut table = Table::default();
        for (state, file) in saved.iter().zip(files) {
            let extent = Extent::new(file, state.length, state.read_only)?;
            let end = state.offset.checked_add(state.length).filter(|end| *end <= DISK_BYTES);
            if end.is_none() || !state.offset.is_multiple_of(ALIGNMENT) || state.offset < table.next {
                return Err(ExtentError::Saved);
            }
            table.extents.insert(state.offset, extent);
            table.next = after(state.offset, state.length);
        }
        Ok(Self { table: RwLock::new(table) })
    }

    /// The table to save.
    pub fn save(&self) -> Vec<ExtentState> {
        let state = |(offset, extent): (&u64, &Arc<Extent>)| ExtentState {
            offset: *offset,
            length: extent.length,
            read_only: extent.read_only,
        };
        self.read().extents.iter().map(state).collect()
    }

    /// Maps `length` bytes of `file` into the disk. Returns the offset.
    pub fn attach(&self, file: OwnedFd, length: u64, read_only: bool) -> Result<u64, ExtentError> {
        let extent = Extent::new(file, length, read_only)?;
        let mut table = self.table.write().expect("nobody panics with this lock");
        let full = ExtentError::Full { length, extents: table.extents.len() };
        if table.extents.len() >= MAX_EXTENTS {
            return Err(full);
        }
        let offset = table.room(table.next, length).or_else(|| table.room(0, length)).ok_or(full)?;
        table.next = after(offset, length);
        table.extents.insert(offset, extent);
        Ok(offset)
    }

    /// Takes the extent at `offset` off the disk. Its file is closed when the last holder drops it: requests that are under way,
    /// and the caller, who may not want to wait for that ([`super::Worker::close`]).
    pub fn detach(&self, offset: u64) -> Result<Arc<Extent>, ExtentError> {
        let mut table = self.table.write().expect("nobody panics with this lock");
        table.extents.remove(&offset).ok_or(ExtentError::Unknown(offset))
    }

    /// The pieces that make up a range, or `None` if any byte of it has no extent.
    pub fn find(&self, mut offset: u64, mut length: u64) -> Option<Vec<Piece>> {
        let table = self.read();
        let mut pieces = Vec::with_capacity(1);
        while length > 0 {
            let (start, extent) = table.extents.range(..=offset).next_back()?;
            let inside = offset - start;
            let count = extent.length.checked_sub(inside).filter(|left| *left > 0)?.min(length);
            pieces.push(Piece { extent: extent.clone(), offset: inside, length: count });
            offset += count;
            length -= count;
        }
        Some(pieces)
    }

    /// The extents written to since the last call.
    pub fn take_dirty(&self) -> Vec<Arc<Extent>> {
        let table = self.read();
        let dirty = |extent: &&Arc<Extent>| extent.dirty.swap(false, Ordering::AcqRel);
        table.extents.values().filter(dirty).cloned().collect()
    }

    /// Whether any extent was written to since it was flushed.
    pub fn any_dirty(&self) -> bool {
        self.read().extents.values().any(|extent| extent.dirty.load(Ordering::Acquire))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().expect("nobody panics with this lock")
    }
}

impl Table {
    /// The first place for `length` bytes at or above `from`.
    fn room(&self, from: u64, length: u64) -> Option<u64> {
        let below = self.extents.range(..from).next_back();
        let mut candidate = below.map_or(from, |(start, extent)| from.max(after(*start, extent.length)));
        for (start, extent) in self.extents.range(candidate..) {
            if start - candidate >= length {
                break;
            }
            candidate = after(*start, extent.length);
        }
        (candidate.checked_add(length)? <= DISK_BYTES).then_some(candidate)
    }
}

/// The first place at which something may start after an extent. Both arguments are at most [`DISK_BYTES`].
fn after(offset: u64, length: u64) -> u64 {
    (offset + length).next_multiple_of(ALIGNMENT)
}
