//! Writes an EROFS file system in one pass over its files: data goes to its blocks as it comes, an inode follows at once, and
//! directories, which need the numbers of what is in them, come last.
//!
//! ```text
//! | superblock, root inode | data | inodes with the ends of small files | data | ... | directories |
//! ```
//!
//! The end of a small file lies behind its inode, in the same block, so that a tree of small files takes little more than its
//! bytes, on disk and in the page caches of the guests that read it. Blocks of zeros are left out of the file.
//! Used by `convert` inside the jail. The file must not be read as a file system before [`Writer::finish`] has returned.

use super::format::{
    ATTRIBUTES_HEADER, ATTRIBUTES_UNIT, BLOCK, BLOCK_BITS, DIRECTORY_ENTRY, FORMAT_INLINE, FORMAT_PLAIN,
    INODE, INODE_LINKS, INODE_MODE, INODE_OWNER, LONGEST_NAME, LONGEST_VALUE, MAGIC, PREFIXES, SLOT,
    SUPERBLOCK, SUPERBLOCK_LENGTH, entry_kind,
};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Files from this size on keep their last piece in a block of its own: it can then be mapped without a copy.
const LARGE: u64 = 64 << 10;

/// Blocks of inodes that are filled at the same time: the end of a file goes where it fits.
const OPEN_BLOCKS: usize = 8;

/// Bytes of content that are taken at once: few enough to stay in a processor's cache between read and write.
const PIECE: usize = 128 << 10;

/// Where the root's inode is. Its number must fit 16 bits, so it has its place before anything else is known.
const ROOT: usize = SUPERBLOCK + SUPERBLOCK_LENGTH;

/// Fixed, so that a file system is a function of the layers it was made of.
const UUID: [u8; 16] = *b"\0\0\0\0\0\0\x40\0\x80\0isopod";

/// Why a file system cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// An attribute that EROFS cannot hold.
    #[error("extended attribute {name} cannot be kept: {reason}")]
    Attribute {
        /// Its name, escaped.
        name: String,
        /// The limit that it exceeds.
        reason: &'static str,
    },
    /// More data than the caller allows, or than EROFS can address.
    #[error("its files take more than {0} bytes (image.max_layer_mib)")]
    TooLarge(u64),
    /// The file cannot be written.
    #[error("cannot write the image: {0}")]
    Io(#[from] io::Error),
}

/// What an inode tells beside its data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by their full names, each name once.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Number of an inode on disk.
pub type InodeNumber = u64;

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its name, at most 255 bytes.
    pub name: &'a [u8],
    /// The inode it leads to.
    pub inode: InodeNumber,
    /// Type of that, as in `st_mode`.
    pub mode: u32,
}

/// A directory whose place is known and whose content is not yet written.
#[derive(Debug, Clone, Copy)]
pub struct Reserved {
    /// Its inode.
    pub inode: InodeNumber,
    first_block: u32,
}

/// A file system that is being written.
pub struct Writer {
    file: File,
    /// Most bytes that it may take.
    limit: u64,
    next_block: u32,
    open: Vec<OpenBlock>,
    inodes: u64,
    piece: Vec<u8>,
}

struct OpenBlock {
    number: u32,
    used: usize,
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty file system of at most `limit` bytes in `file`, which is empty.
    pub fn new(file: File, limit: u64) -> Self {
        Self { file, limit, next_block: 1, open: Vec::new(), inodes: 0, piece: vec![0; PIECE] }
    }

    /// Writes a regular file of `size` bytes; `read` fills its argument with the next of them.
    ///
    /// # Errors
    /// Those of `read`, and [`WriteError`].
    pub fn file<E: From<WriteError>>(
        &mut self,
        metadata: &Metadata,
        size: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<InodeNumber, E> {
        let attributes = encode_attributes(&metadata.attributes)?;
        let end = usize::try_from(size % BLOCK as u64).expect("less than a block");
        let inline = end > 0 && size < LARGE && INODE + attributes.len() + end <= BLOCK;
        let in_blocks = if inline { size - end as u64 } else { size };
        let first_block = self.allocate(in_blocks)?;
        let mut piece = std::mem::take(&mut self.piece);
        let mut done = 0;
        while done < in_blocks {
            let length = usize::try_from(in_blocks - done).map_or(PIECE, |left| left.min(PIECE));
            read(&mut piece[..length])?;
            self.write_data(&piece[..length], offset(first_block) + done)?;
            done += length as u64;
        }
        let tail = if inline { end } else { 0 };
        read(&mut piece[..tail])?;
        let format = if inline { FORMAT_INLINE } else { FORMAT_PLAIN };
        let mut record = self.inode(metadata, format, size, first_block, &attributes);
        record.extend_from_slice(&piece[..tail]);
        self.piece = piece;
        Ok(self.place(&record)?)
    }

    /// Writes a symbolic link.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn symbolic_link(&mut self, metadata: &Metadata, target: &[u8]) -> Result<InodeNumber, WriteError> {
        let mut rest = target;
        self.file(metadata, target.len() as u64, |buffer| {
            let (now, later) = rest.split_at(buffer.len());
            buffer.copy_from_slice(now);
            rest = later;
            Ok(())
        })
    }

    /// Writes a device, by its encoded number, or a FIFO.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn special(&mut self, metadata: &Metadata, device: u32) -> Result<InodeNumber, WriteError> {
        let attributes = encode_attributes(&metadata.attributes)?;
        let record = self.inode(metadata, FORMAT_PLAIN, 0, device, &attributes);
        self.place(&record)
    }

    /// Finds a place for a directory with entries of these names, `.` and `..` among them, in the order of bytes.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn reserve_directory(
        &mut self,
        metadata: &Metadata,
        names: &[&[u8]],
    ) -> Result<Reserved, WriteError> {
        let shape = Shape::of(metadata, names)?;
        let first_block = self.allocate(shape.in_blocks())?;
        let inode = self.place(&vec![0; shape.record_length()])?;
        Ok(Reserved { inode, first_block })
    }

    /// As [`Self::reserve_directory`], for the root.
    ///
    /// # Errors
    /// [`WriteError`]; the root has 2.8 KB for its attributes.
    pub fn reserve_root(&mut self, metadata: &Metadata, names: &[&[u8]]) -> Result<Reserved, WriteError> {
        let shape = Shape::of(metadata, names)?.without_tail();
        if ROOT + shape.record_length() > BLOCK {
            let name = "of the root directory".to_owned();
            return Err(WriteError::Attribute { name, reason: "they take more than 2.8 KB together" });
        }
        let first_block = self.allocate(shape.in_blocks())?;
        Ok(Reserved { inode: ROOT as u64 / SLOT, first_block })
    }

    /// Writes a directory to its place. The entries are those whose names were reserved, in the same order; `links` is its
    /// link count. Nothing may be placed after the first call.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn directory(
        &mut self,
        place: Reserved,
        metadata: &Metadata,
        entries: &[Entry<'_>],
        links: u32,
    ) -> Result<(), WriteError> {
        self.flush()?;
        let names: Vec<_> = entries.iter().map(|entry| entry.name).collect();
        let mut shape = Shape::of(metadata, &names)?;
        if place.inode == ROOT as u64 / SLOT {
            shape = shape.without_tail();
        }
        let mut data = Vec::with_capacity(shape.blocks.len() * BLOCK);
        for range in &shape.blocks {
            data.resize(data.len().next_multiple_of(BLOCK), 0);
            push_entries(&mut data, &entries[range.clone()]);
        }
        let size = data.len() as u64;
        let tail = data.split_off(usize::try_from(shape.in_blocks()).unwrap_or(data.len()).min(data.len()));
        self.file.write_all_at(&data, offset(place.first_block))?;
        let format = if shape.tail > 0 { FORMAT_INLINE } else { FORMAT_PLAIN };
        let mut record = self.inode(metadata, format, size, place.first_block, &shape.attributes);
        record.extend_from_slice(&tail);
        self.file.write_all_at(&record, place.inode * SLOT)?;
        self.set_links(place.inode, links)
    }

    /// Corrects the link count of an inode, which is 1 without this call. Nothing may be placed after the first call.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn set_links(&mut self, inode: InodeNumber, links: u32) -> Result<(), WriteError> {
        self.flush()?;
        Ok(self.file.write_all_at(&links.to_le_bytes(), inode * SLOT + INODE_LINKS)?)
    }

    /// Gives an inode another mode, owner, group and time. Its type and its attributes stay.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn change(&mut self, inode: InodeNumber, metadata: &Metadata) -> Result<(), WriteError> {
        let mode = u16::try_from(metadata.mode & 0xffff).expect("sixteen bits");
        self.patch(inode * SLOT + INODE_MODE, &mode.to_le_bytes())?;
        Ok(self.patch(inode * SLOT + INODE_OWNER, &owner_and_time(metadata))?)
    }

    /// Writes the superblock: the file is a file system now.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn finish(mut self) -> Result<(), WriteError> {
        self.flush()?;
        let mut block = [0; SUPERBLOCK_LENGTH];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &u16::try_from(ROOT as u64 / SLOT).expect("the root is in the first block").to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.next_block.to_le_bytes());
        put(48, &UUID);
        self.file.write_all_at(&block, SUPERBLOCK as u64)?;
        // blocks of zeros at the end were never written
        Ok(self.file.set_len(offset(self.next_block))?)
    }

    fn inode(
        &mut self,
        metadata: &Metadata,
        format: u16,
        size: u64,
        place: u32,
        attributes: &[u8],
    ) -> Vec<u8> {
        self.inodes += 1;
        let number = u32::try_from(self.inodes).unwrap_or(u32::MAX);
        let units = match attributes.len() {
            0 => 0,
            length => u16::try_from((length - ATTRIBUTES_HEADER) / ATTRIBUTES_UNIT + 1)
                .expect("checked on encoding"),
        };
        let mode = u16::try_from(metadata.mode & 0xffff).expect("sixteen bits");
        let mut record = Vec::with_capacity(BLOCK);
        record.extend_from_slice(&format.to_le_bytes());
        record.extend_from_slice(&units.to_le_bytes());
        record.extend_from_slice(&mode.to_le_bytes());
        record.extend_from_slice(&[0; 2]);
        record.extend_from_slice(&size.to_le_bytes());
        record.extend_from_slice(&place.to_le_bytes());
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(&owner_and_time(metadata));
        record.extend_from_slice(&1_u32.to_le_bytes());
        record.resize(INODE, 0);
        record.extend_from_slice(attributes);
        record
    }

    /// Takes blocks for so many bytes; gives the first of them.
    fn allocate(&mut self, bytes: u64) -> Result<u32, WriteError> {
        let too_large = || WriteError::TooLarge(self.limit);
        let blocks = u32::try_from(bytes.div_ceil(BLOCK as u64)).map_err(|_| too_large())?;
        let next = self.next_block.checked_add(blocks).ok_or_else(too_large)?;
        if offset(next) > self.limit {
            return Err(too_large());
        }
        Ok(std::mem::replace(&mut self.next_block, next))
    }

    /// Puts an inode and what follows it into a block where it fits; gives its number.
    fn place(&mut self, record: &[u8]) -> Result<InodeNumber, WriteError> {
        if record.len() > BLOCK {
            // long attributes, and nothing inline behind them: they may cross blocks
            let at = offset(self.allocate(record.len() as u64)?);
            self.file.write_all_at(record, at)?;
            return Ok(at / SLOT);
        }
        if let Some(block) = self.open.iter_mut().find(|block| block.used + record.len() <= BLOCK) {
            return Ok(block.append(record));
        }
        if self.open.len() == OPEN_BLOCKS {
            let fullest = (0..OPEN_BLOCKS).max_by_key(|at| self.open[*at].used).expect("there are some");
            let block = self.open.swap_remove(fullest);
            self.file.write_all_at(&block.bytes, offset(block.number))?;
        }
        let mut block = OpenBlock { number: self.allocate(BLOCK as u64)?, used: 0, bytes: vec![0; BLOCK] };
        let inode = block.append(record);
        self.open.push(block);
        Ok(inode)
    }

    fn write_data(&self, bytes: &[u8], at: u64) -> Result<(), WriteError> {
        // runs of blocks that are not zero: the others are holes of the file, which reads as zeros there
        for run in
            bytes.chunks(BLOCK).zip(0_u64..).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a.0) == is_zero(b.0))
        {
            let (first, number) = run[0];
            if is_zero(first) {
                continue;
            }
            let begin = usize::try_from(number).expect("within a piece") * BLOCK;
            let length: usize = run.iter().map(|(block, _)| block.len()).sum();
            self.file.write_all_at(&bytes[begin..begin + length], at + begin as u64)?;
        }
        Ok(())
    }

    /// Writes over a part of an inode, which is in memory as long as its block is open.
    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self.open.iter_mut().find(|block| u64::from(block.number) == at >> BLOCK_BITS) {
            Some(block) => {
                let at = usize::try_from(at - offset(block.number)).expect("within the block");
                block.bytes[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            None => self.file.write_all_at(bytes, at),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        for block in self.open.drain(..) {
            self.file.write_all_at(&block.bytes, offset(block.number))?;
        }
        Ok(())
    }
}

impl OpenBlock {
    fn append(&mut self, record: &[u8]) -> InodeNumber {
        let at = self.used;
        self.bytes[at..at + record.len()].copy_from_slice(record);
        let slot = usize::try_from(SLOT).expect("small");
        self.used = (at + record.len()).next_multiple_of(slot);
        (offset(self.number) + at as u64) / SLOT
    }
}

/// How a directory's entries are cut into blocks.
struct Shape {
    attributes: Vec<u8>,
    /// Which entries are in which block.
    blocks: Vec<Range<usize>>,
    /// Bytes of the last block's entries, where they lie behind the inode; else 0.
    tail: usize,
}

impl Shape {
    fn of(metadata: &Metadata, names: &[&[u8]]) -> Result<Self, WriteError> {
        let attributes = encode_attributes(&metadata.attributes)?;
        let mut blocks: Vec<Range<usize>> = Vec::new();
        let mut used = BLOCK;
        for (at, name) in names.iter().enumerate() {
            let length = DIRECTORY_ENTRY + name.len();
            if used + length > BLOCK {
                blocks.push(at..at);
                used = 0;
            }
            used += length;
            blocks.last_mut().expect("the first name begins a block").end = at + 1;
        }
        let tail = if INODE + attributes.len() + used <= BLOCK { used } else { 0 };
        Ok(Self { attributes, blocks, tail })
    }

    fn without_tail(self) -> Self {
        Self { tail: 0, ..self }
    }

    fn in_blocks(&self) -> u64 {
        (self.blocks.len() - usize::from(self.tail > 0)) as u64 * BLOCK as u64
    }

    fn record_length(&self) -> usize {
        INODE + self.attributes.len() + self.tail
    }
}

/// Entries of one block: all fixed parts, then all names.
fn push_entries(data: &mut Vec<u8>, entries: &[Entry<'_>]) {
    let mut name_at = entries.len() * DIRECTORY_ENTRY;
    for entry in entries {
        data.extend_from_slice(&entry.inode.to_le_bytes());
        data.extend_from_slice(&u16::try_from(name_at).expect("within a block").to_le_bytes());
        data.extend_from_slice(&[entry_kind(entry.mode), 0]);
        name_at += entry.name.len();
    }
    entries.iter().for_each(|entry| data.extend_from_slice(entry.name));
}

/// Attributes as they lie behind an inode; nothing where there are none.
fn encode_attributes(attributes: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<u8>, WriteError> {
    if attributes.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; ATTRIBUTES_HEADER];
    for (name, value) in attributes {
        let refused = |reason| WriteError::Attribute { name: name.escape_ascii().to_string(), reason };
        let prefix = PREFIXES.iter().find(|(_, prefix)| name.starts_with(prefix));
        let (number, prefix) = prefix.ok_or_else(|| refused("it is in no name space of EROFS"))?;
        let rest = &name[prefix.len()..];
        let length = u8::try_from(rest.len()).ok().filter(|_| name.len() <= LONGEST_NAME);
        let length = length.ok_or_else(|| refused("its name is longer than 255 bytes"))?;
        if value.len() > LONGEST_VALUE {
            return Err(refused("its value is longer than 65535 bytes"));
        }
        let size = u16::try_from(value.len()).expect("compared above");
        bytes.extend_from_slice(&[length, *number]);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(ATTRIBUTES_UNIT), 0);
        if (bytes.len() - ATTRIBUTES_HEADER) / ATTRIBUTES_UNIT + 1 > usize::from(u16::MAX) {
            return Err(refused("the file's attributes take more than 256 KiB together"));
        }
    }
    Ok(bytes)
}

/// Owner, group and time as they follow each other in an inode.
fn owner_and_time(metadata: &Metadata) -> Vec<u8> {
    let Metadata { uid, gid, mtime: (seconds, nanoseconds), .. } = metadata;
    let ids = [uid.to_le_bytes(), gid.to_le_bytes()].concat();
    [&ids[..], &seconds.to_le_bytes(), &nanoseconds.to_le_bytes()].concat()
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn offset(block: u32) -> u64 {
    u64::from(block) << BLOCK_BITS
}
