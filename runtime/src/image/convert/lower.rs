//! The layers below the one that is converted, opened when its archive first refers to them.
//!
//! Most archives name each directory before what is in it, and refer to nothing below but, at their end, the root. So a layer
//! is converted while those below it are still on their way. Used by `walk` and `finish`.

use super::error::ConvertError;
use super::tree::{DirectoryId, ROOT, Tree};
use crate::image::erofs::{Inode, Metadata};
use crate::image::overlay::{Found, Node, Overlay};
use std::io;

/// The layers below.
pub struct Lower<'a> {
    wait: Option<Wait<'a>>,
    overlay: Overlay,
}

type Wait<'a> = Box<dyn FnOnce() -> io::Result<Overlay> + 'a>;

impl<'a> Lower<'a> {
    /// Layers that `wait` waits for, once.
    pub fn new(wait: impl FnOnce() -> io::Result<Overlay> + 'a) -> Self {
        Self { wait: Some(Box::new(wait)), overlay: Overlay::new(Vec::new()) }
    }

    /// The layers, after a wait where nobody has asked before.
    ///
    /// # Errors
    /// [`ConvertError::Lower`].
    pub fn overlay(&mut self) -> Result<&Overlay, ConvertError> {
        if let Some(wait) = self.wait.take() {
            self.overlay = wait().map_err(ConvertError::Lower)?;
        }
        Ok(&self.overlay)
    }

    /// What the layers below show under `name` in a directory of this layer, less what this layer has hidden so far.
    ///
    /// # Errors
    /// Layers that do not come or cannot be read.
    pub fn find(
        &mut self,
        tree: &mut Tree,
        id: DirectoryId,
        name: &[u8],
    ) -> Result<Option<Found>, ConvertError> {
        if tree.hides_lower(id) || tree.directory(id).whiteouts.contains(name) {
            return Ok(None);
        }
        self.overlay()?;
        self.look_up(tree, id)?;
        match &tree.directory(id).lower {
            Some(Some(directory)) => Ok(self.overlay.lookup(directory, name)?),
            _ => Ok(None),
        }
    }

    /// Makes sure that a directory of this layer knows the one below it, and each that it is in.
    fn look_up(&self, tree: &mut Tree, id: DirectoryId) -> Result<(), ConvertError> {
        let mut unknown = Vec::new();
        let mut at = id;
        while tree.directory(at).lower.is_none() {
            unknown.push(at);
            if at == ROOT {
                break;
            }
            at = tree.directory(at).parent;
        }
        for id in unknown.into_iter().rev() {
            let directory = tree.directory(id);
            let found = match &tree.directory(directory.parent).lower {
                _ if id == ROOT => self.overlay.root()?,
                Some(Some(parent)) => match self.overlay.lookup(parent, &directory.name)? {
                    Some(Found::Directory(found)) => Some(found),
                    Some(Found::Other(_)) | None => None,
                },
                _ => None,
            };
            tree.set_lower(id, found)?;
        }
        Ok(())
    }

    /// What a file below says of itself, overlayfs's own attributes left out.
    ///
    /// # Errors
    /// A layer that cannot be read.
    pub fn metadata(&self, node: &Node) -> Result<Metadata, ConvertError> {
        let Inode { mode, uid, gid, mtime, .. } = node.inode;
        let attributes = self.overlay.layer(node).attributes(&node.inode)?;
        let attributes = attributes.into_iter().filter(|(name, value)| is_kept(name, value, mode)).collect();
        Ok(Metadata { mode, uid, gid, mtime, attributes })
    }
}

/// Attributes that a file of `mode` may have in a layer: those that Linux would let it have, as containerd passes over others,
/// and none of `trusted.`, which containerd never takes from an archive: overlayfs keeps its own state there.
pub fn is_kept(name: &[u8], value: &[u8], mode: u32) -> bool {
    let kind = mode & libc::S_IFMT;
    if name.starts_with(b"user.") {
        return matches!(kind, libc::S_IFREG | libc::S_IFDIR);
    }
    let lists: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    name.starts_with(b"security.")
        || (lists.contains(&name) && kind != libc::S_IFLNK && is_access_list(value))
}

/// Whether Linux can read an access control list: it lets nobody open a file whose list it cannot (`posix_acl_from_xattr`).
/// A list without entries is none.
fn is_access_list(value: &[u8]) -> bool {
    let Some((version, entries)) = value.split_first_chunk() else { return false };
    let is_entry = |entry: &[u8]| match entry {
        // owner, group, mask and others; then users and groups with a number, of which the last is no number
        [0x01 | 0x04 | 0x10 | 0x20, 0, ..] => true,
        [0x02 | 0x08, 0, _, _, id @ ..] => id != [0xff; 4],
        _ => false,
    };
    u32::from_le_bytes(*version) == 2
        && !entries.is_empty()
        && entries.len().is_multiple_of(8)
        && entries.chunks(8).all(is_entry)
}
