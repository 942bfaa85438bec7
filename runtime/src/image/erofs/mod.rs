//! Layers as EROFS files: [`Writer`] makes them, [`Erofs`] reads as much of them as the conversion of a later layer needs: names,
//! attributes, links, content.
//!
//! ```text
//! superblock -> inode -> directory   names to inodes            writer, format
//!                     -> attribute   extended attributes
//! image: positioned reads
//! ```
//!
//! Called by `convert` and `overlay`, in the converter's jail: reading makes no system call but pread64. A jailed process made
//! the file from what strangers wrote, so no field is believed: sums are checked, sizes are bounded, each call reads a bounded
//! part of the image and ends. What `Writer` makes, and mkfs.erofs 1.8 once made, is read: no compression, no chunks, one device.
//! The reader does not guard against directories that contain themselves: callers that descend bound the depth.

mod attribute;
mod directory;
mod error;
mod format;
mod image;
mod inode;
mod superblock;
mod writer;

pub use attribute::NamedValues;
pub use error::ErofsError;
pub use format::{LONGEST_NAME, LONGEST_TARGET, encode_device};
pub use inode::Inode;
pub use writer::{Entry, InodeNumber, Metadata, Reserved, WriteError, Writer};

/// The attribute that makes a directory opaque to overlayfs, and the value that does.
pub const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

use attribute::Prefixes;
use directory::Block;
use error::corrupt;
use image::Image;
use std::fs::File;
use superblock::Superblock;

/// Most entries that [`Erofs::entries`] lists, which bounds its memory. [`Erofs::lookup`] has no such limit.
const MOST_ENTRIES: usize = 2 << 20;

/// An open image. All its calls may be made from several threads.
pub struct Erofs {
    image: Image,
    superblock: Superblock,
    prefixes: Prefixes,
}

impl Erofs {
    /// Reads the superblock of `file`, whose content must not change as long as the result lives.
    ///
    /// # Errors
    /// [`ErofsError::NotErofs`] and [`ErofsError::Unsupported`] where the reader does not understand all of the image.
    pub fn open(file: File) -> Result<Self, ErofsError> {
        let image = Image(file);
        let superblock = Superblock::read(&image)?;
        let prefixes = Prefixes::read(&image, &superblock)?;
        Ok(Self { image, superblock, prefixes })
    }

    /// The root directory.
    ///
    /// # Errors
    /// An inode that cannot be read or is no directory.
    pub fn root(&self) -> Result<Inode, ErofsError> {
        let root = self.inode(self.superblock.root)?;
        directory_only(&root)?;
        Ok(root)
    }

    /// What `directory` has under `name`; `None` where it has nothing, and for `.` and `..`.
    ///
    /// # Errors
    /// [`ErofsError::WrongKind`] where `directory` is none, and what reading gives.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<Inode>, ErofsError> {
        directory_only(directory)?;
        if matches!(name, b"." | b"..") {
            return Ok(None);
        }
        // the block is the last whose first name is not behind the wanted one
        let (mut low, mut high) = (0, self.block_count(directory));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let bytes = self.directory_block(directory, middle)?;
            let block = Block::new(directory.number, &bytes)?;
            if block.entry(0)?.0 <= name {
                found = block.find(name)?;
                if found.is_some() {
                    break;
                }
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        found.map(|number| self.inode(number)).transpose()
    }

    /// All entries of `directory` but `.` and `..`, in the order of their names.
    ///
    /// # Errors
    /// As [`Self::lookup`], and [`ErofsError::Corrupt`] where there are more than two million.
    pub fn entries(&self, directory: &Inode) -> Result<Vec<(Vec<u8>, Inode)>, ErofsError> {
        directory_only(directory)?;
        let mut entries = Vec::new();
        for number in 0..self.block_count(directory) {
            let bytes = self.directory_block(directory, number)?;
            let block = Block::new(directory.number, &bytes)?;
            for index in 0..block.count() {
                let (name, inode) = block.entry(index)?;
                if matches!(name, b"." | b"..") {
                    continue;
                }
                if entries.len() == MOST_ENTRIES {
                    return Err(corrupt(directory.number, "it has too many entries"));
                }
                entries.push((name.to_vec(), self.inode(inode)?));
            }
        }
        Ok(entries)
    }

    /// The target of a symbolic link as it was written, which may be anything and empty.
    ///
    /// # Errors
    /// [`ErofsError::WrongKind`] where `inode` is none, a target longer than 4095 bytes, and what reading gives.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ErofsError> {
        if !inode.is_symlink() {
            return Err(ErofsError::WrongKind { inode: inode.number, expected: "symbolic link" });
        }
        if inode.size > LONGEST_TARGET as u64 {
            return Err(corrupt(inode.number, "the target of a symbolic link is too long"));
        }
        let mut target = vec![0; usize::try_from(inode.size).unwrap_or_default()];
        self.content(inode, 0, &mut target)?;
        Ok(target)
    }

    /// Reads content of a regular file from byte `offset` on. Fills `buffer` unless the file ends earlier, and returns how
    /// many bytes were read.
    ///
    /// # Errors
    /// [`ErofsError::WrongKind`] where `inode` is no regular file; an image that ends before the content does.
    pub fn read_at(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, ErofsError> {
        if !inode.is_file() {
            return Err(ErofsError::WrongKind { inode: inode.number, expected: "regular file" });
        }
        self.content(inode, offset, buffer)
    }

    /// Extended attributes with full names such as `security.capability`, those that inodes share last.
    ///
    /// # Errors
    /// An image whose attributes contradict themselves or lie behind its end.
    pub fn attributes(&self, inode: &Inode) -> Result<NamedValues, ErofsError> {
        attribute::list(&self.image, &self.superblock, &self.prefixes, inode)
    }

    fn inode(&self, number: u64) -> Result<Inode, ErofsError> {
        Inode::read(&self.image, &self.superblock, number)
    }

    fn block_count(&self, inode: &Inode) -> u64 {
        inode.size.div_ceil(self.superblock.block_size.into())
    }

    fn directory_block(&self, directory: &Inode, number: u64) -> Result<Vec<u8>, ErofsError> {
        let block_size = u64::from(self.superblock.block_size);
        // both below 2^63, as `number` is below the directory's count of blocks
        let start = number * block_size;
        let mut bytes = vec![0; usize::try_from(block_size.min(directory.size - start)).unwrap_or_default()];
        self.content(directory, start, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads content of an inode of any kind that has some.
    fn content(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, ErofsError> {
        let left = inode.size.saturating_sub(offset);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(buffer) = buffer.get_mut(..length).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let block_size = u64::from(self.superblock.block_size);
        let split = match inode.content.tail {
            Some(_) => (inode.size - 1) / block_size * block_size,
            None => inode.size,
        };
        let in_blocks = length.min(usize::try_from(split.saturating_sub(offset)).unwrap_or(usize::MAX));
        let (blocks, rest) = buffer.split_at_mut(in_blocks);
        if !blocks.is_empty() {
            self.image.read(inode.content.blocks.saturating_add(offset), blocks)?;
        }
        if let (Some(tail), false) = (inode.content.tail, rest.is_empty()) {
            if tail % block_size + (inode.size - split) > block_size {
                return Err(corrupt(inode.number, "its inline content crosses a block"));
            }
            self.image.read(tail.saturating_add(offset.max(split) - split), rest)?;
        }
        Ok(length)
    }
}

fn directory_only(inode: &Inode) -> Result<(), ErofsError> {
    match inode.is_directory() {
        true => Ok(()),
        false => Err(ErofsError::WrongKind { inode: inode.number, expected: "directory" }),
    }
}
