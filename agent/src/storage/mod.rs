//! What containers see as their root: layers of the extent disk below, a throw-away upper directory above.

pub mod user;

use crate::id::Id;
use isopod_protocols::agent::Extent;
use std::path::PathBuf;

/// Layers in use and roots made of them. Calls block for the length of a few mounts: run them off the event loop.
pub struct Storage {}

/// Why a root could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Comes with the next change.
    #[error("container roots are not implemented yet")]
    NotYet,
}

impl Storage {
    /// Makes the root of a container from its layers, lowest first, and answers its path. On failure nothing is left.
    pub fn create_root(&self, _id: &Id, _layers: &[Extent]) -> Result<PathBuf, StorageError> {
        Err(StorageError::NotYet)
    }

    /// Takes a container's root away and releases its layers. A container without root succeeds; after a failure the rest
    /// is kept and a second call goes on where the first one stopped.
    pub fn remove_root(&self, _id: &Id) -> Result<(), StorageError> {
        Ok(())
    }
}
