//! The superblock: where inodes and shared extended attributes are, and which parts of the format the image uses.
//!
//! Offsets are those of `struct erofs_super_block`. The checksum is not compared: it finds bad disks, not bad intent, and
//! the guest's kernel compares it when it mounts the layer.

use super::error::ErofsError;
use super::format::{MAGIC, SUPERBLOCK, SUPERBLOCK_LENGTH};
use super::image::{Image, u16_at, u32_at, u64_at};

/// Smallest and largest block, as powers of two: those of Linux on any page size up to 64 KiB.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=16;

/// Says how compressed data is padded; means nothing where no inode is compressed.
const ZERO_PADDING: u32 = 0x1;
/// The image has a table of long prefixes of attribute names.
const XATTR_PREFIXES: u32 = 0x40;

/// The fields that the reader needs.
pub struct Superblock {
    /// Bytes in a block, a power of two.
    pub block_size: u32,
    /// Number of the root directory's inode.
    pub root: u64,
    /// Byte at which inode 0 begins.
    pub inodes: u64,
    /// Byte at which the shared attribute 0 begins.
    pub shared_attributes: u64,
    /// Number of long name prefixes, and the byte at which their table begins.
    pub prefixes: (u8, u64),
    /// Modification time of compact inodes.
    pub time: (i64, u32),
}

impl Superblock {
    pub fn read(image: &Image) -> Result<Self, ErofsError> {
        let mut raw = [0; SUPERBLOCK_LENGTH];
        image.read(SUPERBLOCK as u64, &mut raw)?;
        let magic = u32_at(&raw, 0);
        if magic != MAGIC {
            return Err(ErofsError::NotErofs(format!("its magic number is {magic:#010x}")));
        }
        let bits = raw[12];
        if !BLOCK_BITS.contains(&bits) {
            return Err(ErofsError::NotErofs(format!("its blocks have 2^{bits} bytes")));
        }
        let features = u32_at(&raw, 80);
        let unknown = features & !(ZERO_PADDING | XATTR_PREFIXES);
        if unknown != 0 {
            return Err(ErofsError::Unsupported(format!("it needs the features {unknown:#x}")));
        }
        if u16_at(&raw, 86) != 0 {
            return Err(ErofsError::Unsupported("it needs further devices".to_owned()));
        }
        if raw[90] != 0 {
            return Err(ErofsError::Unsupported("its directories have blocks of their own size".to_owned()));
        }
        let block = |number: u32| u64::from(number) << bits;
        Ok(Self {
            block_size: 1 << bits,
            root: u16_at(&raw, 14).into(),
            inodes: block(u32_at(&raw, 40)),
            shared_attributes: block(u32_at(&raw, 44)),
            prefixes: match features & XATTR_PREFIXES {
                0 => (0, 0),
                _ => (raw[91], u64::from(u32_at(&raw, 92)) * 4),
            },
            time: time(0, u64_at(&raw, 24), u32_at(&raw, 32))?,
        })
    }
}

/// A time on disk; seconds before 1970 are stored as two's complement.
pub fn time(inode: u64, seconds: u64, nanoseconds: u32) -> Result<(i64, u32), ErofsError> {
    if nanoseconds >= 1_000_000_000 {
        return Err(super::error::corrupt(inode, "its time has more than a second of nanoseconds"));
    }
    Ok((seconds.cast_signed(), nanoseconds))
}
