//! A container's root: an overlay of its layers and a throw-away upper directory.

use super::error::StorageError;
use super::paths::RootPaths;
use super::{copy, delete};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// One setting of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Setting {
    Flag(&'static str),
    Text(&'static str, PathBuf),
}

/// The settings of an overlay; `layers` lowest first.
///
/// Lower directories are given one by one, topmost first, as one `lowerdir` text ends at a page and about 50
/// layers. `volatile`: the upper directory dies with its container, so a sync inside it need not reach the
/// host's disk.
fn settings(layers: &[PathBuf], paths: &RootPaths) -> Vec<Setting> {
    let mut settings: Vec<Setting> =
        layers.iter().rev().map(|layer| Setting::Text("lowerdir+", layer.clone())).collect();
    settings.push(Setting::Text("upperdir", paths.upper.clone()));
    settings.push(Setting::Text("workdir", paths.work.clone()));
    settings.push(Setting::Text("source", PathBuf::from("overlay")));
    settings.push(Setting::Flag("volatile"));
    settings
}

/// Makes the directories of a root and mounts the overlay on it. The caller takes away what a failure leaves.
///
/// The root directory's owner and mode are those of the upper directory, so they are taken over from the
/// topmost layer. An image without layers has an empty root, as with containerd.
pub fn mount_overlay(layers: &[PathBuf], paths: &RootPaths) -> Result<(), StorageError> {
    for directory in [&paths.upper, &paths.work, &paths.trash, &paths.root] {
        fs::create_dir_all(directory).map_err(StorageError::at(directory))?;
    }
    let bottom = [paths.bottom.clone()];
    let layers = match layers.last() {
        Some(topmost) => {
            copy::attributes(topmost, &paths.upper).map_err(StorageError::RootDirectory)?;
            layers
        }
        None => {
            fs::create_dir_all(&paths.bottom).map_err(StorageError::at(&paths.bottom))?;
            &bottom
        }
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| StorageError::Overlay {
        root: paths.root.clone(),
        reason: String::new(),
        source: errno.into(),
    })?;
    attach(&context, &settings(layers, paths), &paths.root).map_err(|errno| StorageError::Overlay {
        root: paths.root.clone(),
        reason: reasons(&context),
        source: errno.into(),
    })
}

fn attach(context: &OwnedFd, settings: &[Setting], root: &Path) -> rustix::io::Result<()> {
    for setting in settings {
        match setting {
            Setting::Flag(key) => fsconfig_set_flag(context.as_fd(), *key)?,
            Setting::Text(key, value) => fsconfig_set_string(context.as_fd(), *key, value)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(mount.as_fd(), "", rustix::fs::CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// What the kernel has to say about a mount that failed: one message per read, none left is an error.
fn reasons(context: &OwnedFd) -> String {
    let mut buffer = [0; 256];
    let mut all = String::new();
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        if all.len() > 1024 {
            break;
        }
        all.push_str(" (");
        all.push_str(String::from_utf8_lossy(&buffer[..length]).trim());
        all.push(')');
    }
    all
}

/// Takes away what the container wrote, and the mount point. What is gone already is no error.
pub fn delete_root(paths: &RootPaths) -> Result<(), StorageError> {
    if paths.writable.exists() {
        for tree in [&paths.upper, &paths.work, &paths.volumes] {
            delete::tree(tree, &paths.trash).map_err(StorageError::at(tree))?;
        }
        for directory in [&paths.bottom, &paths.trash, &paths.writable] {
            delete::directory(directory).map_err(StorageError::at(directory))?;
        }
    }
    delete::directory(&paths.root).map_err(StorageError::at(&paths.root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[test]
    fn layers_are_given_topmost_first() {
        let layers = [PathBuf::from("/base"), PathBuf::from("/middle"), PathBuf::from("/top")];
        let paths = RootPaths::of(&Id::parse("container_id", "c1").unwrap());
        let settings = settings(&layers, &paths);
        assert_eq!(settings[0], Setting::Text("lowerdir+", "/top".into()));
        assert_eq!(settings[2], Setting::Text("lowerdir+", "/base".into()));
        assert_eq!(settings[3], Setting::Text("upperdir", "/run/isopod/scratch/c1/upper".into()));
        assert_eq!(settings[4], Setting::Text("workdir", "/run/isopod/scratch/c1/work".into()));
    }

    #[test]
    fn hundred_layers_are_a_hundred_settings() {
        let layers: Vec<PathBuf> = (0..100).map(|n| PathBuf::from(format!("/layers/{n}"))).collect();
        let paths = RootPaths::of(&Id::parse("container_id", "c1").unwrap());
        let lower = |setting: &&Setting| matches!(setting, Setting::Text("lowerdir+", _));
        assert_eq!(settings(&layers, &paths).iter().filter(lower).count(), 100);
    }
}
