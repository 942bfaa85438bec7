//! What containers see as their root: read-only layers of the extent disk below, a throw-away upper directory above.
//!
//! ```text
//! extent of /dev/vda --devicemapper--> /dev/dm-N --layer--> EROFS mount ─┐
//! extent of /dev/vda --devicemapper--> /dev/dm-N --scratch-> ext4, upper ┴─rootfs-> overlay: the container's root
//! ```

pub mod copy;
mod delete;
mod devicemapper;
pub mod extent;
mod layer;
mod rootfs;
mod scratch;
pub mod user;
pub mod view;
pub mod volume;

use crate::id::Id;
use crate::lock::locked;
use extent::{ExtentError, ExtentRange};
use isopod_protocols::agent::Extent;
use layer::Layers;
use rootfs::Places;
use rustix::mount::UnmountFlags;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use volume::VolumeError;

/// Most layers of one root: overlayfs takes no more.
const MAX_LAYERS: usize = 500;

/// Layers in use and the roots made of them. Calls block for the length of a few mounts, and a removal for that of a deletion:
/// run them off the event loop.
#[derive(Debug, Default)]
pub struct Storage {
    /// Locked for the length of one mount.
    layers: Mutex<Layers>,
    /// Each root is locked as long as it is built or removed, so that calls for one container follow each other and those
    /// for others do not wait.
    roots: Mutex<HashMap<Id, Arc<Mutex<Root>>>>,
}

/// What is still held for one container's root; goes from the end to the beginning when the root is removed.
#[derive(Debug, Default)]
struct Root {
    /// Offsets of the layers that are held, lowest first.
    layers: Vec<u64>,
    mounted: bool,
}

/// Why a root could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// An extent that no disk can have.
    #[error(transparent)]
    Extent(#[from] ExtentError),
    /// More layers than overlayfs takes.
    #[error("layers: {0} given, a root has at most {MAX_LAYERS}")]
    LayerCount(usize),
    /// The topmost layer's root directory gives the container's its owner and mode.
    #[error("the root directory of the topmost layer")]
    RootDirectory(#[source] copy::CopyError),
    /// A volume of the image.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The container has a root.
    #[error("container {0} has a root already")]
    RootExists(Id),
    /// The container has none.
    #[error("container {0} has no root")]
    NoRoot(Id),
    /// A mounted layer's extent begins where the asked one does, and has another length.
    #[error("layers: {asked} overlaps the {mounted} that is mounted")]
    LayerChanged {
        /// What the request names.
        asked: ExtentRange,
        /// What is mounted.
        mounted: ExtentRange,
    },
    /// A layer could not be unmounted when its last container went.
    #[error("layers: {0} is still being released by the container that had it last")]
    LayerLeaving(ExtentRange),
    /// Device-mapper refused.
    #[error(transparent)]
    Device(#[from] devicemapper::DeviceError),
    /// A layer is not an EROFS image that this kernel can mount.
    #[error("{range} cannot be mounted as an EROFS layer")]
    Layer {
        /// Its extent.
        range: ExtentRange,
        /// What the kernel said.
        source: io::Error,
    },
    /// Scratch cannot be mounted.
    #[error("scratch cannot be mounted; does its extent hold an ext4 file system?")]
    Scratch {
        /// What the kernel said.
        source: io::Error,
    },
    /// The overlay cannot be mounted.
    #[error("overlay cannot be mounted at {}{reason}", root.display())]
    Overlay {
        /// Where.
        root: PathBuf,
        /// The kernel's own words, each in parentheses.
        reason: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A mount is in use.
    #[error("{} cannot be unmounted", path.display())]
    Unmount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A path of the agent's own cannot be made or deleted.
    #[error("{} cannot be made or deleted", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl StorageError {
    fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> StorageError {
        move |source| StorageError::Path { path: path.as_ref().to_owned(), source }
    }
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

    /// Makes the root of a container from its layers, lowest first, and answers its path. On failure nothing is left.
    pub fn create_root(&self, id: &Id, layers: &[Extent]) -> Result<PathBuf, StorageError> {
        if layers.len() > MAX_LAYERS {
            return Err(StorageError::LayerCount(layers.len()));
        }
        let ranges: Vec<ExtentRange> =
            layers.iter().map(|extent| ExtentRange::parse("layers", extent)).collect::<Result<_, _>>()?;
        let root = Arc::new(Mutex::new(Root::default()));
        let mut held = locked(&root);
        match locked(&self.roots).entry(id.clone()) {
            Entry::Occupied(_) => return Err(StorageError::RootExists(id.clone())),
            Entry::Vacant(vacant) => vacant.insert(root.clone()),
        };
        self.build(&Places::of(id), &ranges, &mut held).inspect_err(|_| {
            // What cannot be taken back now waits for `remove_root`.
            if self.dismantle(&Places::of(id), &mut held).is_ok() {
                locked(&self.roots).remove(id);
            }
        })
    }

    /// Takes a container's root away and releases its layers. A container without root succeeds; after a failure the rest
    /// is kept and a second call goes on where the first one stopped.
    pub fn remove_root(&self, id: &Id) -> Result<(), StorageError> {
        let Some(root) = locked(&self.roots).get(id).cloned() else { return Ok(()) };
        let mut held = locked(&root);
        self.dismantle(&Places::of(id), &mut held)?;
        locked(&self.roots).remove(id);
        Ok(())
    }

    /// Makes the volumes of a container that has a root, as many directories as `volumes` has paths in it. Removing the root removes
    /// them, also what a failure leaves.
    pub fn create_volumes(&self, id: &Id, volumes: &[String]) -> Result<(), StorageError> {
        let root = locked(&self.roots).get(id).cloned().ok_or_else(|| StorageError::NoRoot(id.clone()))?;
        let _held = locked(&root);
        Ok(volume::make(&Places::of(id), volumes)?)
    }

    /// The directory that holds what a container wrote to its root.
    pub fn upper(&self, id: &Id) -> PathBuf {
        Places::of(id).upper
    }

    fn build(
        &self,
        places: &Places,
        ranges: &[ExtentRange],
        root: &mut Root,
    ) -> Result<PathBuf, StorageError> {
        let mut mounts = Vec::with_capacity(ranges.len());
        for range in ranges {
            mounts.push(locked(&self.layers).acquire(*range)?);
            root.layers.push(range.offset());
        }
        rootfs::mount_overlay(&mounts, places)?;
        root.mounted = true;
        Ok(places.root.clone())
    }

    /// The opposite of [`Storage::build`], in reverse, from wherever that or an earlier removal stopped.
    fn dismantle(&self, places: &Places, root: &mut Root) -> Result<(), StorageError> {
        if root.mounted {
            rustix::mount::unmount(&places.root, UnmountFlags::NOFOLLOW)
                .map_err(|errno| StorageError::Unmount { path: places.root.clone(), source: errno.into() })?;
            root.mounted = false;
        }
        rootfs::delete_places(places)?;
        while let Some(offset) = root.layers.last() {
            locked(&self.layers).release(*offset)?;
            root.layers.pop();
        }
        Ok(())
    }
}
