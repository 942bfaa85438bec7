//! Where the upper directories of containers live: an ext4 file system on the pod's writable extent, or
//! memory.

use super::devicemapper::{self, Access};
use super::error::StorageError;
use super::extent::ExtentRange;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CStr;
use std::fs;
use std::io;

/// Where it is mounted.
const DIRECTORY: &str = isopod_protocols::guest::SCRATCH;

/// Name of its device.
const DEVICE: &str = "scratch";

/// All of it is thrown away with the pod, so nothing waits for the host's disk: no barriers. Freed blocks are
/// given back. The maps of blocks are read when they are needed: a thread of the kernel would read those of
/// 10 GiB after the mount, and keep 0.9 MiB.
const EXT4_OPTIONS: &CStr = c"discard,barrier=0,no_prefetch_block_bitmaps";

/// Mounts the pod's scratch. On failure nothing is left.
pub fn mount_at_set_up(extent: Option<ExtentRange>) -> Result<(), StorageError> {
    fs::create_dir_all(DIRECTORY).map_err(StorageError::at(DIRECTORY))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let Some(range) = extent else {
        return mount("tmpfs", DIRECTORY, "tmpfs", flags, c"mode=0700").map_err(|errno| failed(errno.into()));
    };
    let device = devicemapper::create(DEVICE, range, Access::ReadWrite)?;
    mount(&device, DIRECTORY, "ext4", flags, EXT4_OPTIONS).map_err(|errno| {
        let _ = devicemapper::remove(DEVICE);
        failed(errno.into())
    })
}

/// Takes back [`mount_at_set_up`], for a set-up that failed at a later step.
pub fn unmount_after_failure() {
    let _ = unmount(DIRECTORY, UnmountFlags::NOFOLLOW);
    let _ = devicemapper::remove(DEVICE);
}

fn failed(source: io::Error) -> StorageError {
    StorageError::Scratch { source }
}
