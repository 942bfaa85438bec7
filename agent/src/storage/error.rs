//! Errors of roots, layers and scratch. Users and paths of images have errors of their own (`user`, `view`,
//! `copy`, `volume`).

use super::copy::CopyError;
use super::devicemapper::DeviceError;
use super::extent::{ExtentError, ExtentRange};
use super::volume::VolumeError;
use crate::id::Id;
use std::io;
use std::path::{Path, PathBuf};

/// Most layers of one root: overlayfs takes no more.
pub const MAX_LAYERS: usize = 500;

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
    RootDirectory(#[source] CopyError),
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
    Device(#[from] DeviceError),
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
    /// Names the path at which an error of the system occurred.
    pub fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> StorageError {
        move |source| StorageError::Path { path: path.as_ref().to_owned(), source }
    }
}
