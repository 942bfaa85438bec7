//! Copies what an image has at a path, with all that a file has: kind, owner, mode, links, attributes, times,
//! holes.
//!
//! Called by `volume`, and by `rootfs` for the root directory's own attributes. The source is an image's, so
//! it may be deep, wide and full of devices; nothing of it is followed or opened but directories and regular
//! files. Nobody may change source or target meanwhile. A failure leaves what was copied so far to the
//! caller.

use rustix::fs::{AtFlags, CWD, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Deepest directory: as many are open at once.
const MAX_DEPTH: usize = 1024;

/// Most files with several names of which not all have been seen, each kept by its path.
const MAX_LINKED: usize = 65_536;

/// Bytes copied between two looks at the clock.
const PIECE: u64 = 8 << 20;

/// Most bytes of one extended attribute, and of the list of their names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_ATTRIBUTE: usize = 65_536;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The kernel refused.
    #[error("{} cannot be copied", path.display())]
    Refused {
        /// What was to be copied.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// More than the limits allow.
    #[error("{} cannot be copied: {reason}", path.display())]
    TooMuch {
        /// What was to be copied.
        path: PathBuf,
        /// Which limit.
        reason: &'static str,
    },
    /// Out of time.
    #[error("the copy has not ended in time; {} was next", path.display())]
    Late {
        /// What was to be copied.
        path: PathBuf,
    },
}

/// A copy on its way.
struct CopyRun {
    deadline: Instant,
    /// Where files that have more names were copied to, and how many names are to come.
    linked: HashMap<(u64, u64), (PathBuf, u64)>,
}

/// A directory of which a part has been copied.
struct OpenDirectory {
    entries: fs::ReadDir,
    source: PathBuf,
    target: PathBuf,
}

/// Copies a directory's content and attributes to `target`, an empty directory.
pub fn directory(source: &Path, target: &Path, deadline: Instant) -> Result<(), CopyError> {
    let mut copy = CopyRun { deadline, linked: HashMap::new() };
    let mut levels = vec![enter(source.to_owned(), target.to_owned())?];
    while let Some(level) = levels.last_mut() {
        let entry = level.entries.next().transpose().map_err(refused(&level.source))?;
        let Some(entry) = entry else {
            // Last, as what is put into a directory changes its time.
            attributes(&level.source, &level.target)?;
            levels.pop();
            continue;
        };
        let (source, target) = (entry.path(), level.target.join(entry.file_name()));
        copy.on_time(&source)?;
        let found = fs::symlink_metadata(&source).map_err(refused(&source))?;
        if !found.is_dir() {
            copy.file(&source, &target, &found)?;
            continue;
        }
        if levels.len() == MAX_DEPTH {
            return Err(CopyError::TooMuch { path: source, reason: "directories are nested too deep" });
        }
        fs::DirBuilder::new().mode(0o700).create(&target).map_err(refused(&source))?;
        levels.push(enter(source, target)?);
    }
    Ok(())
}

fn enter(source: PathBuf, target: PathBuf) -> Result<OpenDirectory, CopyError> {
    Ok(OpenDirectory { entries: fs::read_dir(&source).map_err(refused(&source))?, source, target })
}

impl CopyRun {
    fn on_time(&self, path: &Path) -> Result<(), CopyError> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        Err(CopyError::Late { path: path.to_owned() })
    }

    fn file(&mut self, source: &Path, target: &Path, found: &Metadata) -> Result<(), CopyError> {
        if found.nlink() > 1 && self.link(source, target, found)? {
            return Ok(());
        }
        let kind = found.file_type();
        if kind.is_file() {
            self.content(source, target, found.len())?;
        } else if kind.is_symlink() {
            fs::read_link(source).and_then(|to| symlink(to, target)).map_err(refused(source))?;
        } else if kind.is_socket() {
            // A name that nobody listens at; containerd leaves it out as well.
            return Ok(());
        } else {
            node(target, found).map_err(|errno| refused(source)(errno.into()))?;
        }
        attributes(source, target)
    }

    /// Makes another name of a file that has been copied; answers whether it had been.
    fn link(&mut self, source: &Path, target: &Path, found: &Metadata) -> Result<bool, CopyError> {
        let inode = (found.dev(), found.ino());
        if let Some((first, left)) = self.linked.get_mut(&inode) {
            fs::hard_link(&*first, target).map_err(refused(source))?;
            *left -= 1;
            if *left == 0 {
                self.linked.remove(&inode);
            }
            return Ok(true);
        }
        if self.linked.len() == MAX_LINKED {
            let reason = "too many files have several names";
            return Err(CopyError::TooMuch { path: source.to_owned(), reason });
        }
        self.linked.insert(inode, (target.to_owned(), found.nlink() - 1));
        Ok(false)
    }

    /// Copies a regular file's bytes, and leaves its holes out.
    fn content(&self, source: &Path, target: &Path, length: u64) -> Result<(), CopyError> {
        let mut from = File::open(source).map_err(refused(source))?;
        let mut to = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target)
            .map_err(refused(source))?;
        to.set_len(length).map_err(refused(source))?;
        let mut at = 0;
        while let Some((data, end)) =
            next_data(&from, at, length).map_err(|errno| refused(source)(errno.into()))?
        {
            from.seek(io::SeekFrom::Start(data)).map_err(refused(source))?;
            to.seek(io::SeekFrom::Start(data)).map_err(refused(source))?;
            at = data;
            while at < end {
                self.on_time(source)?;
                let copied =
                    io::copy(&mut (&from).take(PIECE.min(end - at)), &mut to).map_err(refused(source))?;
                if copied == 0 {
                    return Err(refused(source)(io::ErrorKind::UnexpectedEof.into()));
                }
                at += copied;
            }
        }
        Ok(())
    }
}

/// The next range of a file at or after `at` that is no hole. A file system that knows of no holes has one
/// range.
fn next_data(file: &File, at: u64, length: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(errno) => return Err(errno),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
    Ok((data < length).then(|| (data, hole.min(length))))
}

/// Makes a device or a pipe.
fn node(target: &Path, found: &Metadata) -> rustix::io::Result<()> {
    let kind = FileType::from_raw_mode(found.mode());
    rustix::fs::mknodat(CWD, target, kind, Mode::from_raw_mode(0o600), found.rdev())
}

/// Gives `target` the owner, mode, extended attributes and times of `source`, neither of them followed. The
/// owner comes first, as its change takes setuid bits and capabilities away.
pub fn attributes(source: &Path, target: &Path) -> Result<(), CopyError> {
    let found = fs::symlink_metadata(source).map_err(refused(source))?;
    lchown(target, Some(found.uid()), Some(found.gid())).map_err(refused(source))?;
    xattrs(source, target).map_err(|errno| refused(source)(errno.into()))?;
    if !found.is_symlink() {
        fs::set_permissions(target, Permissions::from_mode(found.mode() & 0o7777))
            .map_err(refused(source))?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(found.atime(), found.atime_nsec()),
        last_modification: time(found.mtime(), found.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| refused(source)(errno.into()))
}

/// Copies extended attributes, but those of overlayfs and, as containerd does, SELinux. One that the target's
/// file system has no place for is left out, as `cp -a` does.
fn xattrs(source: &Path, target: &Path) -> rustix::io::Result<()> {
    let mut names = vec![0; MAX_ATTRIBUTE];
    let length = match rustix::fs::llistxattr(source, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = Vec::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        value.resize(MAX_ATTRIBUTE, 0);
        let name = OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(source, name, &mut value[..])?;
        match rustix::fs::lsetxattr(target, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::Refused { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    struct Trees {
        directory: tempfile::TempDir,
    }

    impl Trees {
        fn new() -> Trees {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("from")).unwrap();
            fs::create_dir(directory.path().join("to")).unwrap();
            Trees { directory }
        }

        fn from(&self, path: &str) -> PathBuf {
            self.directory.path().join("from").join(path)
        }

        fn to(&self, path: &str) -> PathBuf {
            self.directory.path().join("to").join(path)
        }

        fn copy(&self, time: Duration) -> Result<(), CopyError> {
            directory(&self.from(""), &self.to(""), Instant::now() + time)
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn content_modes_times_and_links_are_copied() {
        let trees = Trees::new();
        fs::create_dir(trees.from("d")).unwrap();
        fs::write(trees.from("d/file"), "text").unwrap();
        fs::set_permissions(trees.from("d/file"), Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(trees.from("d/file"), trees.from("again")).unwrap();
        symlink("/nowhere", trees.from("link")).unwrap();
        rustix::fs::mknodat(CWD, trees.from("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for path in ["d/file", "d", ""] {
            File::open(trees.from(path)).unwrap().set_modified(old).unwrap();
        }
        fs::set_permissions(trees.from("d"), Permissions::from_mode(0o2750)).unwrap();
        trees.copy(LONG).unwrap();
        let found = fs::metadata(trees.to("d/file")).unwrap();
        assert_eq!((found.mode() & 0o7777, found.nlink(), found.mtime()), (0o4711, 2, 1_000_000_000));
        assert_eq!(found.ino(), fs::metadata(trees.to("again")).unwrap().ino());
        assert_eq!(fs::read(trees.to("again")).unwrap(), b"text");
        assert_eq!(fs::read_link(trees.to("link")).unwrap(), Path::new("/nowhere"));
        assert!(fs::metadata(trees.to("pipe")).unwrap().file_type().is_fifo());
        let directory = fs::metadata(trees.to("d")).unwrap();
        assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o2750, 1_000_000_000));
        assert_eq!(fs::metadata(trees.to("")).unwrap().mtime(), 1_000_000_000);
    }

    #[test]
    fn holes_stay_holes() {
        let trees = Trees::new();
        let file = File::create(trees.from("sparse")).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"middle", 1 << 30).unwrap();
        trees.copy(LONG).unwrap();
        let copy = File::open(trees.to("sparse")).unwrap();
        let mut middle = [0; 6];
        copy.read_exact_at(&mut middle, 1 << 30).unwrap();
        let found = copy.metadata().unwrap();
        assert_eq!((&middle, found.len()), (b"middle", 1 << 40));
        assert!(found.blocks() < 1 << 20, "{} blocks", found.blocks());
    }

    #[test]
    fn linked_files_outside_are_copied() {
        let trees = Trees::new();
        fs::write(trees.directory.path().join("outside"), "text").unwrap();
        fs::hard_link(trees.directory.path().join("outside"), trees.from("inside")).unwrap();
        trees.copy(LONG).unwrap();
        assert_eq!(fs::metadata(trees.to("inside")).unwrap().nlink(), 1);
    }

    #[test]
    fn deadline_is_kept_and_tells_where() {
        let trees = Trees::new();
        fs::write(trees.from("file"), "text").unwrap();
        let error = trees.copy(Duration::ZERO).unwrap_err();
        assert!(matches!(error, CopyError::Late { .. }) && error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn tree_that_is_too_deep_is_refused() {
        let trees = Trees::new();
        fs::create_dir_all(trees.from(&"d/".repeat(MAX_DEPTH))).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        if limit.current.is_some_and(|files| files < 2 * MAX_DEPTH as u64) {
            return;
        }
        assert!(matches!(trees.copy(LONG), Err(CopyError::TooMuch { .. })));
    }

    #[test]
    fn attributes_are_copied_where_there_are_any() {
        let trees = Trees::new();
        fs::write(trees.from("file"), "").unwrap();
        // A file system without user attributes has nothing to copy.
        let set = rustix::fs::lsetxattr(trees.from("file"), "user.isopod", b"value", XattrFlags::empty());
        trees.copy(LONG).unwrap();
        if set.is_ok() {
            let mut value = [0; 16];
            let length = rustix::fs::lgetxattr(trees.to("file"), "user.isopod", &mut value[..]).unwrap();
            assert_eq!(&value[..length], b"value");
        }
    }
}
