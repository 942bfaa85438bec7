//! What overlayfs shows of a stack of layers, as far as looking up names needs it.
//!
//! The rules are those of Documentation/filesystems/overlayfs.rst: the topmost layer that has a name decides; directories
//! are merged downwards until something else is in the way: a whiteout, another kind of file, or an opaque directory.
//! One rule differs: an opaque root hides the layers below it here, where overlayfs merges all roots. Whoever mounts the
//! stack leaves those layers out.
//!
//! Called by `convert`, which looks into the layers below the one it makes. Nothing is cached: each call reads what it needs of
//! each layer.

use super::erofs::{Erofs, ErofsError, Inode, OPAQUE};
use std::collections::BTreeMap;

/// A stack of layers, the topmost first.
pub struct Overlay {
    layers: Vec<Erofs>,
}

/// A file of one layer.
#[derive(Debug, Clone)]
pub struct Node {
    /// Position of its layer in the stack: 0 is the topmost.
    pub layer: usize,
    /// The file, to be used with that layer only.
    pub inode: Inode,
}

/// A directory as the stack shows it: the directories of the layers that are merged.
#[derive(Debug, Clone)]
pub struct Directory {
    top: Node,
    lower: Vec<Node>,
}

/// What the stack shows under a name.
#[derive(Debug, Clone)]
pub enum Found {
    /// A directory, merged from at least one layer.
    Directory(Directory),
    /// Any other kind of file; never a whiteout.
    Other(Node),
}

impl Directory {
    /// The directory of the topmost layer that has it: mode, owner, times and attributes are those of this one.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.top
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.lower.capacity() * size_of::<Node>()
    }

    /// How many layers' directories are merged: of so many a lookup may read.
    #[must_use]
    pub fn layers(&self) -> usize {
        1 + self.lower.len()
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.top).chain(&self.lower)
    }
}

/// What is known of a name while layers are looked at from the top.
enum Merge {
    /// No layer had it yet.
    Absent,
    /// Directories that go on being merged.
    Open(Directory),
    /// Lower layers no longer matter.
    Closed(Option<Found>),
}

impl Merge {
    fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }

    fn found(self) -> Option<Found> {
        match self {
            Self::Absent => None,
            Self::Open(directory) => Some(Found::Directory(directory)),
            Self::Closed(found) => found,
        }
    }
}

impl Overlay {
    /// Stacks `layers`, the topmost first.
    #[must_use]
    pub fn new(layers: Vec<Erofs>) -> Self {
        Self { layers }
    }

    /// Whether there is no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The merged root; `None` where there is no layer.
    ///
    /// # Errors
    /// A layer whose root cannot be read.
    pub fn root(&self) -> Result<Option<Directory>, ErofsError> {
        let mut merge = Merge::Absent;
        for (layer, erofs) in self.layers.iter().enumerate() {
            merge = self.add(merge, Node { layer, inode: erofs.root()? })?;
            if merge.is_closed() {
                break;
            }
        }
        Ok(merge.found().and_then(|found| match found {
            Found::Directory(directory) => Some(directory),
            Found::Other(_) => None,
        }))
    }

    /// What `directory` shows under `name`; `None` where no layer has it or a whiteout hides it.
    ///
    /// # Errors
    /// A layer that cannot be read.
    pub fn lookup(&self, directory: &Directory, name: &[u8]) -> Result<Option<Found>, ErofsError> {
        let mut merge = Merge::Absent;
        for parent in directory.nodes() {
            if let Some(inode) = self.layer(parent).lookup(&parent.inode, name)? {
                merge = self.add(merge, Node { layer: parent.layer, inode })?;
            }
            if merge.is_closed() {
                break;
            }
        }
        Ok(merge.found())
    }

    /// All that `directory` shows, in the order of the names.
    ///
    /// # Errors
    /// A layer that cannot be read, or a directory of one layer with more than two million entries.
    pub fn entries(&self, directory: &Directory) -> Result<Vec<(Vec<u8>, Found)>, ErofsError> {
        let mut names = BTreeMap::new();
        for parent in directory.nodes() {
            for (name, inode) in self.layer(parent).entries(&parent.inode)? {
                let slot = names.entry(name).or_insert(Merge::Absent);
                let merge = std::mem::replace(slot, Merge::Absent);
                *slot = self.add(merge, Node { layer: parent.layer, inode })?;
            }
        }
        Ok(names.into_iter().filter_map(|(name, merge)| Some((name, merge.found()?))).collect())
    }

    /// The layer that `node` is in.
    ///
    /// # Panics
    /// Where `node` comes from another stack with more layers.
    #[must_use]
    pub fn layer(&self, node: &Node) -> &Erofs {
        &self.layers[node.layer]
    }

    /// What is known of a name after the next lower layer that has it.
    fn add(&self, merge: Merge, node: Node) -> Result<Merge, ErofsError> {
        if merge.is_closed() {
            return Ok(merge);
        }
        if !node.inode.is_directory() {
            return Ok(Merge::Closed(match merge {
                Merge::Absent if node.inode.is_whiteout() => None,
                Merge::Absent => Some(Found::Other(node)),
                merge => merge.found(),
            }));
        }
        let opaque = self.is_opaque(&node)?;
        let directory = match merge {
            Merge::Open(mut directory) => {
                directory.lower.push(node);
                directory
            }
            _ => Directory { top: node, lower: Vec::new() },
        };
        Ok(match opaque {
            true => Merge::Closed(Some(Found::Directory(directory))),
            false => Merge::Open(directory),
        })
    }

    fn is_opaque(&self, node: &Node) -> Result<bool, ErofsError> {
        let attributes = self.layer(node).attributes(&node.inode)?;
        Ok(attributes.iter().any(|(name, value)| (&name[..], &value[..]) == OPAQUE))
    }
}
