//! The end of a conversion: the tree of names becomes directories, whiteouts and link counts on disk.
//!
//! Called by `convert` once the archive has ended. Directories name each other, so all get their places before the first is
//! written.

use super::Conversion;
use super::error::ConvertError;
use super::tree::{Child, Directory, DirectoryId, ROOT};
use crate::image::erofs::{Entry, InodeNumber, Metadata, OPAQUE, Reserved};

/// Tells overlayfs not to show the whiteouts of a directory as they are where no directory lies below it (Linux,
/// fs/overlayfs/readdir.c, `ovl_dir_is_real`).
const ORIGIN: (&[u8], &[u8]) = (b"trusted.overlay.origin", b"");

/// What every directory begins with.
const SELF: &[u8] = b".";
const PARENT: &[u8] = b"..";

/// Places of all directories, and of the one inode that is every whiteout.
struct Plan {
    places: Vec<Option<Reserved>>,
    /// Within reach, each after the one it is in.
    order: Vec<DirectoryId>,
    whiteout: Option<InodeNumber>,
    whiteouts: u32,
    links: Vec<u32>,
    /// Whether there are layers below, so that there is something to hide.
    hides: bool,
}

impl Conversion<'_> {
    pub(super) fn finish(mut self) -> Result<(), ConvertError> {
        self.tree.directory_mut(ROOT).metadata = self.root_metadata()?;
        let mut plan = self.plan()?;
        for id in std::mem::take(&mut plan.order) {
            self.write_directory(id, &plan)?;
        }
        for (inode, links) in self.tree.inodes().iter().zip(&plan.links).filter(|(_, links)| **links > 1) {
            self.writer.set_links(inode.number, *links)?;
        }
        if let Some(whiteout) = plan.whiteout {
            self.writer.set_links(whiteout, plan.whiteouts)?;
        }
        Ok(self.writer.finish()?)
    }

    /// Those of the archive's entry, else of the layers below, else of a new directory.
    fn root_metadata(&mut self) -> Result<Metadata, ConvertError> {
        // asked for in any case: what the layer hides depends on whether there is a layer below
        let below = self.lower.overlay()?.root()?;
        match (self.root.take(), below) {
            (Some(metadata), _) => Ok(metadata),
            (None, Some(directory)) => self.lower.metadata(directory.node()),
            (None, None) => Ok(Metadata { mode: libc::S_IFDIR | 0o755, ..Metadata::default() }),
        }
    }

    fn plan(&mut self) -> Result<Plan, ConvertError> {
        let mut plan = Plan {
            places: vec![None; self.tree.directory_count()],
            order: Vec::new(),
            whiteout: None,
            whiteouts: 0,
            links: vec![0; self.tree.inodes().len()],
            hides: !self.lower.overlay()?.is_empty(),
        };
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            plan.order.push(id);
            let directory = self.tree.directory(id);
            for child in directory.children.values() {
                match child {
                    Child::Directory(id) => todo.push(*id),
                    Child::Link { inode, .. } | Child::Other(inode) => plan.links[*inode] += 1,
                }
            }
            let hidden = plan.hidden(directory).count();
            plan.whiteouts = plan.whiteouts.saturating_add(u32::try_from(hidden).unwrap_or(u32::MAX));
            if plan.whiteouts > 0 && plan.whiteout.is_none() {
                let metadata = Metadata { mode: libc::S_IFCHR, ..Metadata::default() };
                plan.whiteout = Some(self.writer.special(&metadata, 0)?);
            }
            let metadata = plan.metadata(directory);
            let names = plan.names(directory);
            let reserve = if id == ROOT {
                self.writer.reserve_root(&metadata, &names)
            } else {
                self.writer.reserve_directory(&metadata, &names)
            };
            plan.places[id] = Some(reserve?);
        }
        Ok(plan)
    }

    fn write_directory(&mut self, id: DirectoryId, plan: &Plan) -> Result<(), ConvertError> {
        let directory = self.tree.directory(id);
        let place = |id: DirectoryId| plan.places[id].expect("each within reach has its place");
        let entry_of = |name| {
            let (inode, mode) = match name {
                SELF => (place(id).inode, libc::S_IFDIR),
                PARENT => (place(directory.parent).inode, libc::S_IFDIR),
                name => match directory.children.get(name) {
                    Some(Child::Directory(id)) => (place(*id).inode, libc::S_IFDIR),
                    Some(Child::Link { inode, .. } | Child::Other(inode)) => {
                        let inode = self.tree.inodes()[*inode];
                        (inode.number, inode.mode)
                    }
                    None => (plan.whiteout.expect("made with the first of them"), libc::S_IFCHR),
                },
            };
            Entry { name, inode, mode }
        };
        let entries: Vec<_> = plan.names(directory).into_iter().map(entry_of).collect();
        let inside = directory.children.values().filter(|child| matches!(child, Child::Directory(_))).count();
        let links = u32::try_from(2 + inside).unwrap_or(u32::MAX);
        let metadata = plan.metadata(directory);
        Ok(self.writer.directory(place(id), &metadata, &entries, links)?)
    }
}

impl Plan {
    /// Names that need a whiteout on disk.
    fn hidden<'a>(&self, directory: &'a Directory) -> impl Iterator<Item = &'a [u8]> {
        let needed = self.hides && !directory.opaque;
        let names =
            directory.whiteouts.iter().filter(move |name| needed && !directory.children.contains_key(*name));
        names.map(|name| &**name)
    }

    /// All names of a directory in the order of their bytes, as EROFS looks them up.
    fn names<'a>(&self, directory: &'a Directory) -> Vec<&'a [u8]> {
        let mut names = vec![SELF, PARENT];
        names.extend(directory.children.keys().map(|name| &**name));
        names.extend(self.hidden(directory));
        names.sort_unstable();
        names
    }

    fn metadata(&self, directory: &Directory) -> Metadata {
        let mut metadata = directory.metadata.clone();
        let mut add =
            |(name, value): (&[u8], &[u8])| metadata.attributes.push((name.to_vec(), value.to_vec()));
        if self.hides && directory.opaque {
            add(OPAQUE);
        }
        if self.hidden(directory).next().is_some() {
            add(ORIGIN);
        }
        metadata
    }
}
