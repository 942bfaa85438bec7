//! What containers see as their root: read-only layers of the extent disk below, a throw-away upper directory
//! above.
//!
//! ```text
//! extent of /dev/vda --devicemapper--> /dev/dm-N --layer--> EROFS mount ─┐
//! extent of /dev/vda --devicemapper--> /dev/dm-N --scratch-> ext4, upper ┴─rootfs-> overlay: the container's root
//! ```

pub mod copy;
mod delete;
mod devicemapper;
mod error;
pub mod extent;
mod layer;
mod paths;
mod rootfs;
mod scratch;
pub mod user;
pub mod view;
pub mod volume;

pub use error::StorageError;

use crate::id::Id;
use crate::lock::locked;
use error::MAX_LAYERS;
use extent::ExtentRange;
use isopod_protocols::agent::Extent;
use layer::Layers;
use paths::RootPaths;
use rustix::mount::UnmountFlags;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Layers in use and the roots made of them. Calls block for the length of a few mounts, and a removal for
/// that of a deletion: run them off the event loop.
#[derive(Debug, Default)]
pub struct Storage {
    /// Locked for the length of one mount.
    layers: Mutex<Layers>,
    /// Each root is locked as long as it is built or removed, so that calls for one container follow each
    /// other and those for others do not wait.
    roots: Mutex<HashMap<Id, Arc<Mutex<HeldRoot>>>>,
}

/// What is still held for one container's root; goes from the end to the beginning when the root is removed.
#[derive(Debug, Default)]
struct HeldRoot {
    /// Offsets of the layers that are held, lowest first.
    layers: Vec<u64>,
    mounted: bool,
}

impl Storage {
    /// Mounts the scratch on which upper directories live; without an extent they live in memory.
    pub fn set_up(scratch: Option<ExtentRange>) -> Result<Storage, StorageError> {
        scratch::mount_at_set_up(scratch)?;
        Ok(Storage::default())
    }

    /// Takes back [`Storage::set_up`], for a sandbox whose set-up failed at a later step.
    pub fn undo_set_up() {
        scratch::unmount_after_failure();
    }

    /// Makes the root of a container from its layers, lowest first, and answers its path. On failure nothing
    /// is left.
    pub fn create_root(&self, id: &Id, layers: &[Extent]) -> Result<PathBuf, StorageError> {
        if layers.len() > MAX_LAYERS {
            return Err(StorageError::LayerCount(layers.len()));
        }
        let ranges: Vec<ExtentRange> =
            layers.iter().map(|extent| ExtentRange::parse("layers", extent)).collect::<Result<_, _>>()?;
        let root = Arc::new(Mutex::new(HeldRoot::default()));
        let mut held = locked(&root);
        match locked(&self.roots).entry(id.clone()) {
            Entry::Occupied(_) => return Err(StorageError::RootExists(id.clone())),
            Entry::Vacant(vacant) => vacant.insert(root.clone()),
        };
        self.build(&RootPaths::of(id), &ranges, &mut held).inspect_err(|_| {
            // What cannot be taken back now waits for `remove_root`.
            if self.dismantle(&RootPaths::of(id), &mut held).is_ok() {
                locked(&self.roots).remove(id);
            }
        })
    }

    /// Takes a container's root away and releases its layers. A container without root succeeds; after a
    /// failure the rest is kept and a second call goes on where the first one stopped.
    pub fn remove_root(&self, id: &Id) -> Result<(), StorageError> {
        let Some(root) = locked(&self.roots).get(id).cloned() else { return Ok(()) };
        let mut held = locked(&root);
        self.dismantle(&RootPaths::of(id), &mut held)?;
        locked(&self.roots).remove(id);
        Ok(())
    }

    /// Makes the volumes of a container that has a root, as many directories as `volumes` has paths in it.
    /// Removing the root removes them, also what a failure leaves.
    pub fn create_volumes(&self, id: &Id, volumes: &[String]) -> Result<(), StorageError> {
        let root = locked(&self.roots).get(id).cloned().ok_or_else(|| StorageError::NoRoot(id.clone()))?;
        let _held = locked(&root);
        Ok(volume::make(&RootPaths::of(id), volumes)?)
    }

    /// The directory that holds what a container wrote to its root.
    pub fn upper(&self, id: &Id) -> PathBuf {
        RootPaths::of(id).upper
    }

    fn build(
        &self,
        paths: &RootPaths,
        ranges: &[ExtentRange],
        root: &mut HeldRoot,
    ) -> Result<PathBuf, StorageError> {
        let mut mounts = Vec::with_capacity(ranges.len());
        for range in ranges {
            mounts.push(locked(&self.layers).acquire(*range)?);
            root.layers.push(range.offset());
        }
        rootfs::mount_overlay(&mounts, paths)?;
        root.mounted = true;
        Ok(paths.root.clone())
    }

    /// The opposite of [`Storage::build`], in reverse, from wherever that or an earlier removal stopped.
    fn dismantle(&self, paths: &RootPaths, root: &mut HeldRoot) -> Result<(), StorageError> {
        if root.mounted {
            rustix::mount::unmount(&paths.root, UnmountFlags::NOFOLLOW)
                .map_err(|errno| StorageError::Unmount { path: paths.root.clone(), source: errno.into() })?;
            root.mounted = false;
        }
        rootfs::delete_root(paths)?;
        while let Some(offset) = root.layers.last() {
            locked(&self.layers).release(*offset)?;
            root.layers.pop();
        }
        Ok(())
    }
}
