//! The names of one layer: what stands where, which names of lower layers it hides, and what it is built from.
//!
//! ```text
//! directory --name--> directory | symbolic link with its target | any other inode
//!     \------name--> whiteout: hides what lower layers have
//!      \-opaque: hides all that lower layers have in it
//! ```
//!
//! Filled by `convert` in the order of the archive, read by `walk` and `finish`. It knows nothing of paths or archives. All of
//! it is in memory, so each name is charged against a bound.

use super::error::ConvertError;
use crate::image::erofs::{InodeNumber, Metadata};
use crate::image::overlay;
use std::collections::{BTreeMap, BTreeSet};

/// Position of a directory in the tree. A directory that was replaced keeps its position, out of reach.
pub type DirectoryId = usize;

/// The root's position.
pub const ROOT: DirectoryId = 0;

/// What a name costs beside its bytes: its key, its child and their share of the map; measured with a million names.
const NAME_COST: usize = 128;

/// What a directory costs beside its name.
const DIRECTORY_COST: usize = 320;

/// All names of the layer.
pub struct Tree {
    directories: Vec<Directory>,
    inodes: Vec<Inode>,
    /// Memory that the names may still take, and that they might take at first.
    left: usize,
    bound: usize,
}

/// A directory of the layer.
pub struct Directory {
    /// Where it is; the root is its own parent.
    pub parent: DirectoryId,
    /// Its name there.
    pub name: Box<[u8]>,
    /// What its inode says.
    pub metadata: Metadata,
    /// What it holds.
    pub children: BTreeMap<Box<[u8]>, Child>,
    /// Names that it hides of lower layers. A child of the same name stays visible.
    pub whiteouts: BTreeSet<Box<[u8]>>,
    /// Nothing that lower layers have in it shows.
    pub opaque: bool,
    /// The same directory of the lower layers, once somebody has looked.
    pub lower: Option<Option<Box<overlay::Directory>>>,
}

/// What stands under a name.
#[derive(Clone)]
pub enum Child {
    /// A directory of this layer.
    Directory(DirectoryId),
    /// A symbolic link.
    Link {
        /// Position of its inode.
        inode: usize,
        /// Where it leads.
        target: Box<[u8]>,
    },
    /// Anything else: position of its inode.
    Other(usize),
}

/// An inode that is written already.
#[derive(Debug, Clone, Copy)]
pub struct Inode {
    /// Its number on disk.
    pub number: InodeNumber,
    /// Type and permissions.
    pub mode: u32,
}

impl Tree {
    /// A root and nothing else. Names may take `bound` bytes of memory.
    pub fn new(bound: usize) -> Self {
        let root = Directory::new(ROOT, b"", Metadata::default());
        Self { directories: vec![root], inodes: Vec::new(), left: bound, bound }
    }

    /// The directory at `id`.
    pub fn directory(&self, id: DirectoryId) -> &Directory {
        &self.directories[id]
    }

    /// As [`Self::directory`], to be changed.
    pub fn directory_mut(&mut self, id: DirectoryId) -> &mut Directory {
        &mut self.directories[id]
    }

    /// How many positions there are, of directories within reach and out of it.
    pub fn directory_count(&self) -> usize {
        self.directories.len()
    }

    /// All inodes, by their positions.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// Notes an inode that was written; gives its position.
    ///
    /// # Errors
    /// [`ConvertError::TooManyNames`].
    pub fn add_inode(&mut self, number: InodeNumber, mode: u32) -> Result<usize, ConvertError> {
        self.charge(size_of::<Inode>())?;
        self.inodes.push(Inode { number, mode });
        Ok(self.inodes.len() - 1)
    }

    /// Puts a new directory under a name, in place of whatever is there. What lower layers have under the name is merged,
    /// unless a whiteout or a replaced child of this layer has hidden it.
    ///
    /// # Errors
    /// [`ConvertError::TooManyNames`].
    pub fn add_directory(
        &mut self,
        parent: DirectoryId,
        name: &[u8],
        metadata: Metadata,
    ) -> Result<DirectoryId, ConvertError> {
        self.charge(DIRECTORY_COST + 2 * name.len() + NAME_COST)?;
        self.charge(cost(&metadata))?;
        let id = self.directories.len();
        let mut directory = Directory::new(parent, name, metadata);
        let above = &mut self.directories[parent];
        let replaced = above.children.insert(name.into(), Child::Directory(id)).is_some();
        directory.opaque = replaced || above.whiteouts.contains(name);
        self.directories.push(directory);
        Ok(id)
    }

    /// Replaces what a directory's inode says.
    ///
    /// # Errors
    /// [`ConvertError::TooManyNames`].
    pub fn set_metadata(&mut self, id: DirectoryId, metadata: Metadata) -> Result<(), ConvertError> {
        self.charge(cost(&metadata))?;
        self.directories[id].metadata = metadata;
        Ok(())
    }

    /// Notes what the layers below have in place of a directory: nothing, or a directory of that many layers.
    ///
    /// # Errors
    /// [`ConvertError::TooManyNames`].
    pub fn set_lower(
        &mut self,
        id: DirectoryId,
        lower: Option<overlay::Directory>,
    ) -> Result<(), ConvertError> {
        self.charge(lower.as_ref().map_or(0, overlay::Directory::size))?;
        self.directories[id].lower = Some(lower.map(Box::new));
        Ok(())
    }

    /// Puts a file that is no directory under a name, in place of whatever is there.
    ///
    /// # Errors
    /// [`ConvertError::TooManyNames`].
    pub fn put(&mut self, parent: DirectoryId, name: &[u8], child: Child) -> Result<(), ConvertError> {
        let target = if let Child::Link { target, .. } = &child { target.len() } else { 0 };
        self.charge(NAME_COST + name.len() + target)?;
        self.directories[parent].children.insert(name.into(), child);
        Ok(())
    }

    /// Hides what lower layers have under a name; what this layer has there stays.
    ///
    /// # Errors
    /// [`ConvertError::TooManyNames`].
    pub fn white_out(&mut self, parent: DirectoryId, name: &[u8]) -> Result<(), ConvertError> {
        self.charge(NAME_COST + name.len())?;
        self.directories[parent].whiteouts.insert(name.into());
        if let Some(&Child::Directory(id)) = self.directories[parent].children.get(name) {
            self.directories[id].opaque = true;
        }
        Ok(())
    }

    /// Whether a directory, or one that it is in, hides what lower layers have.
    pub fn hides_lower(&self, mut id: DirectoryId) -> bool {
        loop {
            let directory = &self.directories[id];
            if directory.opaque || id == ROOT {
                return directory.opaque;
            }
            id = directory.parent;
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), ConvertError> {
        self.left = self.left.checked_sub(bytes).ok_or(ConvertError::TooManyNames(self.bound))?;
        Ok(())
    }
}

impl Child {
    /// Position of its inode; `None` for a directory.
    pub fn inode(&self) -> Option<usize> {
        match self {
            Self::Directory(_) => None,
            Self::Link { inode, .. } | Self::Other(inode) => Some(*inode),
        }
    }
}

/// Memory of what an inode says beside its fixed part.
fn cost(metadata: &Metadata) -> usize {
    metadata.attributes.iter().map(|(name, value)| name.len() + value.len() + 48).sum()
}

impl Directory {
    fn new(parent: DirectoryId, name: &[u8], metadata: Metadata) -> Self {
        Self {
            parent,
            name: name.into(),
            metadata,
            children: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaque: false,
            lower: None,
        }
    }
}
