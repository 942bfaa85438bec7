//! A container's root as the kernel shows it: layers mounted from loop devices, and overlayfs on top of them, in a mount
//! namespace of this thread's own.

use crate::model::{Inode, Kind};
use crate::observe::{Seen, join};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const NO_DATA: Option<&str> = None;

/// Whether this machine can mount layers; says why where it cannot.
pub fn possible() -> bool {
    let kinds = fs::read_to_string("/proc/filesystems").unwrap();
    let known = |kind: &str| kinds.lines().any(|line| line.ends_with(&format!("\t{kind}")));
    let why = if !nix::unistd::geteuid().is_root() {
        "layers are mounted by root"
    } else if !known("erofs") || !known("overlay") || !Path::new("/dev/loop-control").exists() {
        "the kernel has no EROFS, no overlayfs or no loop devices"
    } else if unshare(CloneFlags::CLONE_NEWNS).is_err() {
        "this process may not have a mount namespace of its own"
    } else {
        mount(NO_DATA, "/", NO_DATA, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_DATA).unwrap();
        // a loop device waits until its file is on disk, which takes long on a busy one
        mount(Some("tmpfs"), &std::env::temp_dir(), Some("tmpfs"), MsFlags::empty(), NO_DATA).unwrap();
        return true;
    };
    eprintln!("skipped: {why}");
    false
}

/// A mounted stack, until it is dropped.
struct Mounted {
    points: Vec<PathBuf>,
    directory: tempfile::TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for point in self.points.iter().rev() {
            // the namespace ends with the thread, and all mounts with it
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

/// Every path of a stack of layers, the lowest first.
pub fn paths(layers: &[PathBuf]) -> Vec<Seen> {
    let mut mounted = Mounted { points: Vec::new(), directory: tempfile::tempdir().unwrap() };
    let new = |name: &str| {
        let path = mounted.directory.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (bottom, root) = (new("bottom"), new("root"));
    let points: Vec<_> = (0..layers.len()).map(|number| new(&number.to_string())).collect();
    for (layer, point) in layers.iter().zip(points) {
        let ran = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop"])
            .arg(layer)
            .arg(&point)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        mounted.points.push(point);
    }
    // overlayfs wants two layers at least, and it merges opaque roots
    let opaque = |point: &PathBuf| attributes(point).contains_key(&b"trusted.overlay.opaque"[..]);
    let lowest = mounted.points.iter().rposition(opaque).unwrap_or(0);
    let lower = mounted.points[lowest..].iter().rev().chain([&bottom]).map(|path| path.to_str().unwrap());
    let options = format!("lowerdir={}", lower.collect::<Vec<_>>().join(":"));
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::MS_RDONLY, Some(&options[..])).unwrap();
    mounted.points.push(root.clone());
    let mut paths = Vec::new();
    walk(&root, "", &mut paths);
    paths
}

fn walk(at: &Path, path: &str, into: &mut Vec<Seen>) {
    let metadata = fs::symlink_metadata(at).unwrap();
    let device = metadata.rdev();
    let numbers = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let number = |half: u64| u32::try_from(half).unwrap();
    let kind = match metadata.mode() & 0o170_000 {
        0o040_000 => Kind::Directory,
        0o120_000 => Kind::Link(fs::read_link(at).unwrap().as_os_str().as_bytes().to_vec()),
        0o020_000 => Kind::Character(number(numbers.0), number(numbers.1)),
        0o060_000 => Kind::Block(number(numbers.0), number(numbers.1)),
        0o010_000 => Kind::Fifo,
        _ => Kind::File(fs::read(at).unwrap()),
    };
    if kind == Kind::Directory {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            walk(&entry.path(), &join(path, entry.file_name().as_bytes()), into);
        }
    }
    let inode = Inode {
        layer: 0,
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap()),
        attributes: attributes(at),
    };
    let place = (metadata.dev(), metadata.ino());
    into.push(Seen { path: format!("{path}/"), inode, layer: None, place, links: metadata.nlink() });
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        (name.to_vec(), value[..length].to_vec())
    };
    names.map(read).collect()
}
