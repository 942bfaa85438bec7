//! From the path of an entry to the directory it stands in: component by component, through symbolic links of this layer and
//! of those below, never out of the root. As containerd's `fs.RootPath` and `mkparent` do.
//!
//! Used by `convert` for the parents of entries and of the targets of hard links. The last component of a path is the
//! caller's: no link is followed there.

use super::Conversion;
use super::ConvertError;
use super::error::{Fault, shown};
use super::tree::{Child, DirectoryId, ROOT};
use crate::image::erofs::{LONGEST_NAME, Metadata};
use crate::image::overlay::{self, Found};
use std::collections::VecDeque;

/// Most symbolic links on one path, as containerd has it.
const MOST_LINKS: usize = 255;

/// Most components of a path after its links were followed: a bound on work. A path that Linux takes has 2048 at most.
const MOST_COMPONENTS: usize = 4096;

/// Most lookups in layers below on one path: a bound on reads, as each component is looked up in every layer
/// that has its directory. Directories that all of an image's 255 layers share may be 64 deep.
const MOST_LOOKUPS: usize = 64 * 255;

/// What becomes of a component that is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A directory is made: mode 0755, owner root.
    Make,
    /// The path leads nowhere.
    Fail,
}

/// Where a path leads: to a directory of this layer, and from there on down directories that only lower layers have. They
/// become directories of this layer by [`Conversion::make`], when something is put there, and not because a path leads
/// through them: a whiteout may still hide them.
pub struct Place {
    at: DirectoryId,
    below: Vec<(Box<[u8]>, overlay::Directory)>,
}

impl Place {
    /// The directory, where it is one of this layer.
    pub fn own(&self) -> Option<DirectoryId> {
        self.below.is_empty().then_some(self.at)
    }
}

/// A step from a directory to what it has under a name.
enum Step {
    Into,
    Through(Box<[u8]>),
    Blocked,
}

/// The components of a path, cleaned as Go's `filepath.Clean` does it below a root: `.` and empty ones go, `..` takes the
/// one before it away.
pub fn components(path: &[u8]) -> Vec<&[u8]> {
    let mut clean = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

impl Conversion<'_> {
    /// The directory that `path` leads to; `None` where [`Missing::Fail`] met nothing, or something else than a directory.
    /// `entry` is the name for errors.
    ///
    /// # Errors
    /// A [`Fault`] of the path; a layer below that does not come or cannot be read.
    pub(super) fn walk(
        &mut self,
        entry: &[u8],
        path: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<Place>, ConvertError> {
        let fault = |fault| Err(ConvertError::entry(entry, fault));
        let mut todo: VecDeque<Box<[u8]>> = path.iter().map(|part| Box::from(*part)).collect();
        let mut place = Place { at: ROOT, below: Vec::new() };
        let (mut links, mut steps, mut lookups) = (0, 0, 0);
        while let Some(name) = todo.pop_front() {
            steps += 1;
            if name.len() > LONGEST_NAME {
                return fault(Fault::NameTooLong);
            }
            if steps > MOST_COMPONENTS {
                return fault(Fault::PathTooLong(MOST_COMPONENTS));
            }
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    if place.below.pop().is_none() {
                        place.at = self.tree.directory(place.at).parent;
                    }
                    continue;
                }
                _ => {}
            }
            lookups += self.lookups(&place, &name);
            if lookups > MOST_LOOKUPS {
                return fault(Fault::TooManyLookups(MOST_LOOKUPS));
            }
            match self.step(&mut place, &name, missing)? {
                Some(Step::Into) => {}
                Some(Step::Through(target)) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return fault(Fault::TooManyLinks(MOST_LINKS));
                    }
                    if target.first() == Some(&b'/') {
                        place = Place { at: ROOT, below: Vec::new() };
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        todo.push_front(part.into());
                    }
                }
                Some(Step::Blocked) if missing == Missing::Make => {
                    return fault(Fault::NotADirectory(shown(&name)));
                }
                Some(Step::Blocked) | None => return Ok(None),
            }
        }
        Ok(Some(place))
    }

    /// The directory of this layer at `place`. Those that only lower layers have become directories of this one, with the
    /// same metadata.
    ///
    /// # Errors
    /// A layer below that cannot be read; [`ConvertError::TooManyNames`].
    pub(super) fn make(&mut self, place: Place) -> Result<DirectoryId, ConvertError> {
        let mut at = place.at;
        for (name, below) in place.below {
            let metadata = self.lower.metadata(below.node())?;
            at = self.tree.add_directory(at, &name, metadata)?;
            self.tree.set_lower(at, Some(below))?;
        }
        Ok(at)
    }

    /// What lower layers show under `name` at `place`.
    ///
    /// # Errors
    /// Layers that do not come or cannot be read.
    pub(super) fn find_below(&mut self, place: &Place, name: &[u8]) -> Result<Option<Found>, ConvertError> {
        match place.below.last() {
            Some((_, directory)) => Ok(self.lower.overlay()?.lookup(directory, name)?),
            None => self.lower.find(&mut self.tree, place.at, name),
        }
    }

    /// Lookups in layers below that [`Self::step`] makes, less those for directories of this layer that it
    /// has not looked for yet: each is looked for once.
    fn lookups(&self, place: &Place, name: &[u8]) -> usize {
        match (place.below.last(), self.tree.directory(place.at)) {
            (Some((_, below)), _) => below.layers(),
            (None, own) if own.children.contains_key(name) => 0,
            (None, own) => own.lower.iter().flatten().map(|below| below.layers()).sum(),
        }
    }

    fn step(
        &mut self,
        place: &mut Place,
        name: &[u8],
        missing: Missing,
    ) -> Result<Option<Step>, ConvertError> {
        let own = place.own().and_then(|id| self.tree.directory(id).children.get(name));
        match own {
            Some(Child::Directory(id)) => {
                place.at = *id;
                return Ok(Some(Step::Into));
            }
            Some(Child::Link { target, .. }) => return Ok(Some(Step::Through(target.clone()))),
            Some(Child::Other(_)) => return Ok(Some(Step::Blocked)),
            None => {}
        }
        match self.find_below(place, name)? {
            Some(Found::Directory(below)) => {
                place.below.push((name.into(), below));
                Ok(Some(Step::Into))
            }
            Some(Found::Other(node)) if node.inode.is_symlink() => {
                let target = self.lower.overlay()?.layer(&node).read_link(&node.inode)?;
                Ok(Some(Step::Through(target.into())))
            }
            // a file of a lower layer gives way to a directory of this one, as in containerd's mkparent
            Some(Found::Other(_)) | None if missing == Missing::Make => {
                let metadata = Metadata { mode: libc::S_IFDIR | 0o755, ..Metadata::default() };
                let parent = std::mem::replace(place, Place { at: ROOT, below: Vec::new() });
                let parent = self.make(parent)?;
                place.at = self.tree.add_directory(parent, name, metadata)?;
                Ok(Some(Step::Into))
            }
            Some(Found::Other(_)) => Ok(Some(Step::Blocked)),
            None => Ok(None),
        }
    }
}
