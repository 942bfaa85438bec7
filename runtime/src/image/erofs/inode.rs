//! Inodes in both sizes, compact and extended, and where their content lies.

use super::error::{ErofsError, corrupt};
use super::format::{FORMAT_INLINE, FORMAT_PLAIN, INODE, SLOT};
use super::image::{Image, u16_at, u32_at, u64_at};
use super::superblock::{Superblock, time};
use libc::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};

/// Bytes of an inode in its short form.
const COMPACT_SIZE: usize = 32;

/// Layouts of data, as `i_format` has them above its lowest bit, which tells the form of the inode.
const FLAT_PLAIN: u16 = FORMAT_PLAIN >> 1;
const FLAT_INLINE: u16 = FORMAT_INLINE >> 1;

/// One file of any kind. Two names with one `number` are hard links.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Number, unique in the image.
    pub number: u64,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds, which are below a second.
    pub mtime: (i64, u32),
    /// Bytes of content. Not checked against the image: reads of what it does not have fail.
    pub size: u64,
    /// Number of names, as the image states it.
    pub links: u32,
    /// Major and minor number of a device; zeros elsewhere.
    pub device: (u32, u32),
    pub(super) content: Content,
    pub(super) attributes: Attributes,
}

/// Where content lies: whole blocks from `blocks` on; with `tail`, the last block's part lies at that byte instead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub blocks: u64,
    pub tail: Option<u64>,
}

/// The extended attributes beside the inode; a size of zero is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub offset: u64,
    pub size: usize,
}

impl Inode {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind() == S_IFDIR
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.kind() == S_IFLNK
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind() == S_IFREG
    }

    /// Whether overlayfs takes it for a whiteout: the character device 0:0.
    #[must_use]
    pub fn is_whiteout(&self) -> bool {
        self.kind() == S_IFCHR && self.device == (0, 0)
    }

    fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }

    /// Reads the inode of a number that may be anything.
    pub(super) fn read(image: &Image, superblock: &Superblock, number: u64) -> Result<Self, ErofsError> {
        let far = || corrupt(number, "it lies outside of any image");
        let offset =
            number.checked_mul(SLOT).and_then(|slot| slot.checked_add(superblock.inodes)).ok_or_else(far)?;
        let mut raw = [0; INODE];
        image.read(offset, &mut raw[..COMPACT_SIZE])?;
        let format = u16_at(&raw, 0);
        if format > 0xF {
            return Err(ErofsError::Unsupported(format!("inode {number} has the format {format:#x}")));
        }
        let extended = format & 1 == 1;
        let size = if extended { INODE } else { COMPACT_SIZE };
        if extended {
            image.read(offset.saturating_add(COMPACT_SIZE as u64), &mut raw[COMPACT_SIZE..])?;
        }
        let attributes = Attributes {
            offset: offset.checked_add(size as u64).ok_or_else(far)?,
            size: attributes_size(u16_at(&raw, 2)),
        };
        let mut inode =
            if extended { extended_fields(number, &raw)? } else { compact_fields(number, &raw, superblock) };
        inode.attributes = attributes;
        let place = u32_at(&raw, 16);
        match inode.kind() {
            S_IFREG | S_IFDIR | S_IFLNK => {
                let behind = attributes.offset.checked_add(attributes.size as u64).ok_or_else(far)?;
                inode.content = content(number, format >> 1, place, behind, superblock)?;
            }
            S_IFCHR | S_IFBLK => inode.device = device(place),
            S_IFIFO | S_IFSOCK => {}
            _ => return Err(corrupt(number, "its type is unknown")),
        }
        if i64::try_from(inode.size).is_err() {
            return Err(corrupt(number, "its size is negative"));
        }
        Ok(inode)
    }
}

fn compact_fields(number: u64, raw: &[u8; INODE], superblock: &Superblock) -> Inode {
    Inode {
        number,
        mode: u16_at(raw, 4).into(),
        links: u16_at(raw, 6).into(),
        size: u32_at(raw, 8).into(),
        uid: u16_at(raw, 24).into(),
        gid: u16_at(raw, 26).into(),
        mtime: superblock.time,
        device: (0, 0),
        content: Content { blocks: 0, tail: None },
        attributes: Attributes { offset: 0, size: 0 },
    }
}

fn extended_fields(number: u64, raw: &[u8; INODE]) -> Result<Inode, ErofsError> {
    Ok(Inode {
        number,
        mode: u16_at(raw, 4).into(),
        links: u32_at(raw, 44),
        size: u64_at(raw, 8),
        uid: u32_at(raw, 24),
        gid: u32_at(raw, 28),
        mtime: time(number, u64_at(raw, 32), u32_at(raw, 40))?,
        device: (0, 0),
        content: Content { blocks: 0, tail: None },
        attributes: Attributes { offset: 0, size: 0 },
    })
}

/// Bytes of attributes behind an inode: a header of 12 bytes counts as one unit, each further unit has 4 bytes.
fn attributes_size(units: u16) -> usize {
    match units {
        0 => 0,
        units => 12 + 4 * (usize::from(units) - 1),
    }
}

fn content(
    number: u64,
    layout: u16,
    block: u32,
    behind: u64,
    superblock: &Superblock,
) -> Result<Content, ErofsError> {
    let blocks = u64::from(block) * u64::from(superblock.block_size);
    match layout {
        FLAT_PLAIN => Ok(Content { blocks, tail: None }),
        FLAT_INLINE => Ok(Content { blocks, tail: Some(behind) }),
        other => Err(ErofsError::Unsupported(format!(
            "content of inode {number} is compressed or in chunks (layout {other})"
        ))),
    }
}

/// Linux's `new_decode_dev`.
fn device(raw: u32) -> (u32, u32) {
    ((raw & 0xF_FF00) >> 8, (raw & 0xFF) | ((raw >> 12) & 0xF_FF00))
}

#[cfg(test)]
mod tests {
    use super::super::encode_device;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn device_numbers_survive_the_disk(major in 0_u32..=0xFFF, minor in 0_u32..=0xF_FFFF) {
            prop_assert_eq!(device(encode_device(major, minor)), (major, minor));
        }
    }

    #[test]
    fn attributes_behind_an_inode_have_a_header_and_units_of_four_bytes() {
        assert_eq!([0, 1, 2, u16::MAX].map(attributes_size), [0, 12, 16, 262_148]);
    }
}
