//! Read-only image layers: each extent that holds one is mounted once, and shared by all containers that have
//! it.
//!
//! ```text
//!           acquire           acquire
//!   absent ---------> 1 user ---------> 2 users ...
//!      ^                |  ^               |
//!      +----------------+  +---------------+
//!       unmount, unmap          release
//! ```
//!
//! A user stays counted until the layer is gone, so a release that failed can be repeated.

use super::devicemapper::{self, Access};
use super::error::StorageError;
use super::extent::ExtentRange;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

/// Where layers are mounted, each at its extent's offset.
const DIRECTORY: &str = "/run/isopod/layers";

/// Layers in use, by the offset of their extent.
#[derive(Debug, Default)]
pub struct Layers {
    table: HashMap<u64, Layer>,
}

#[derive(Debug)]
struct Layer {
    range: ExtentRange,
    users: usize,
    mounted: bool,
}

impl Layers {
    /// Counts one more user of a layer, mounts it if that is the first, and answers where.
    pub fn acquire(&mut self, range: ExtentRange) -> Result<PathBuf, StorageError> {
        let offset = range.offset();
        if self.table.get(&offset).is_some_and(|layer| layer.users == 0) {
            // An earlier mount failed, and so did its undoing.
            self.dispose(offset)?;
        }
        match self.table.get_mut(&offset) {
            None => self.mount(range)?,
            Some(layer) if layer.range != range => {
                return Err(StorageError::LayerChanged { asked: range, mounted: layer.range });
            }
            Some(layer) if !layer.mounted => return Err(StorageError::LayerLeaving(range)),
            Some(layer) => layer.users += 1,
        }
        Ok(directory(offset))
    }

    /// Counts one user less, and takes the layer away with the last one. A layer that is not there is no
    /// error.
    pub fn release(&mut self, offset: u64) -> Result<(), StorageError> {
        match self.table.get_mut(&offset) {
            None => Ok(()),
            Some(layer) if layer.users > 1 => {
                layer.users -= 1;
                Ok(())
            }
            Some(_) => self.dispose(offset),
        }
    }

    fn mount(&mut self, range: ExtentRange) -> Result<(), StorageError> {
        let offset = range.offset();
        let device = devicemapper::create(&device_name(offset), range, Access::ReadOnly)?;
        self.table.insert(offset, Layer { range, users: 0, mounted: false });
        let target = directory(offset);
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        let mounted = fs::create_dir_all(&target)
            .and_then(|()| mount(&device, &target, "erofs", flags, None).map_err(Into::into));
        if let Err(source) = mounted {
            // The reason to tell is the first one; what is left over waits in the table.
            let _ = self.dispose(offset);
            return Err(StorageError::Layer { range, source });
        }
        let layer = self.table.get_mut(&offset).expect("it was inserted above");
        layer.mounted = true;
        layer.users = 1;
        Ok(())
    }

    /// Unmounts and unmaps a layer, from wherever an earlier attempt stopped.
    fn dispose(&mut self, offset: u64) -> Result<(), StorageError> {
        let Some(layer) = self.table.get_mut(&offset) else { return Ok(()) };
        let target = directory(offset);
        if layer.mounted {
            unmount(&target, UnmountFlags::NOFOLLOW)
                .map_err(|source| StorageError::Unmount { path: target.clone(), source: source.into() })?;
            layer.mounted = false;
        }
        devicemapper::remove(&device_name(offset))?;
        let _ = fs::remove_dir(&target);
        self.table.remove(&offset);
        Ok(())
    }
}

fn directory(offset: u64) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{offset}"))
}

fn device_name(offset: u64) -> String {
    format!("layer-{offset}")
}
