//! Extended attributes: those beside the inode, those that inodes share, and the prefixes of their names.
//!
//! ```text
//! beside the inode: | filter u32, shared count u8, 7 zeros | shared ids u32 ... | entry | entry ... |
//! entry:            | name length u8, name index u8, value size u16 | name | value | up to a multiple of 4 |
//! ```

use super::error::{ErofsError, corrupt};
use super::image::{Image, u16_at, u32_at};
use super::inode::Inode;
use super::superblock::Superblock;

const HEADER: usize = 12;
const ENTRY: usize = 4;
const LONG_PREFIX: u8 = 0x80;
const LONGEST_INFIX: usize = 255;

/// Full names of attributes with their values.
pub type NamedValues = Vec<(Vec<u8>, Vec<u8>)>;

/// The prefixes that an image declares beside the fixed ones.
pub struct Prefixes(Vec<Vec<u8>>);

impl Prefixes {
    pub fn read(image: &Image, superblock: &Superblock) -> Result<Self, ErofsError> {
        let (count, mut offset) = superblock.prefixes;
        let mut prefixes = Vec::new();
        for _ in 0..count {
            let mut length = [0; 2];
            image.read(offset, &mut length)?;
            let length = usize::from(u16_at(&length, 0));
            if !(1..=LONGEST_INFIX + 1).contains(&length) {
                return Err(ErofsError::NotErofs(format!("an attribute prefix has {length} bytes")));
            }
            let item = image.read_vec(offset + 2, length)?;
            prefixes.push([short_prefix(item[0]).unwrap_or_default(), &item[1..]].concat());
            // below 2^34 at the start, and 2^16 steps of less than 2^9
            offset += (2 + length as u64).next_multiple_of(4);
        }
        Ok(Self(prefixes))
    }

    /// The full name; `None` for a prefix that Linux does not show either.
    fn name(&self, index: u8, rest: &[u8]) -> Option<Vec<u8>> {
        let prefix = if index & LONG_PREFIX == 0 {
            short_prefix(index)?
        } else {
            self.0.get(usize::from(index & !LONG_PREFIX)).filter(|prefix| !prefix.is_empty())?
        };
        Some([prefix, rest].concat())
    }
}

fn short_prefix(index: u8) -> Option<&'static [u8]> {
    match index {
        1 => Some(b"user."),
        2 => Some(b"system.posix_acl_access"),
        3 => Some(b"system.posix_acl_default"),
        4 => Some(b"trusted."),
        6 => Some(b"security."),
        _ => None,
    }
}

/// All attributes of `inode`. At most 256 KiB beside it and 255 shared ones of less than 64.3 KiB are read.
pub fn list(
    image: &Image,
    superblock: &Superblock,
    prefixes: &Prefixes,
    inode: &Inode,
) -> Result<NamedValues, ErofsError> {
    let place = inode.attributes;
    if place.size == 0 {
        return Ok(NamedValues::new());
    }
    let body = image.read_vec(place.offset, place.size)?;
    let shared_end = HEADER + 4 * usize::from(body[4]);
    let ids = body
        .get(HEADER..shared_end)
        .ok_or_else(|| corrupt(inode.number, "it shares more attributes than fit"))?;
    let mut attributes = NamedValues::new();
    let mut rest = &body[shared_end..];
    while !rest.is_empty() {
        let wrong = || corrupt(inode.number, "an attribute is longer than the space it is in");
        if rest.len() < ENTRY {
            return Err(wrong());
        }
        let (name, value, whole) = lengths(rest);
        let content = rest.get(ENTRY..ENTRY + name + value).ok_or_else(wrong)?;
        if let Some(full) = prefixes.name(rest[1], &content[..name]) {
            attributes.push((full, content[name..].to_vec()));
        }
        rest = rest.get(whole..).ok_or_else(wrong)?;
    }
    for id in ids.chunks_exact(4) {
        let offset = superblock.shared_attributes + 4 * u64::from(u32_at(id, 0));
        let mut head = [0; ENTRY];
        image.read(offset, &mut head)?;
        let (name, value, _) = lengths(&head);
        let content = image.read_vec(offset + ENTRY as u64, name + value)?;
        if let Some(full) = prefixes.name(head[1], &content[..name]) {
            attributes.push((full, content[name..].to_vec()));
        }
    }
    Ok(attributes)
}

/// Bytes of an entry's name, of its value, and of all of it with its padding.
fn lengths(entry: &[u8]) -> (usize, usize, usize) {
    let (name, value) = (usize::from(entry[0]), usize::from(u16_at(entry, 2)));
    (name, value, (ENTRY + name + value).next_multiple_of(4))
}
