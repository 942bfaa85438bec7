//! Deletes trees that containers filled: as deep and as wide as they liked, on a full disk, with files marked undeletable.
//!
//! Directories are moved into a flat trash directory before they are emptied, so neither the stack nor a path ever grows
//! with the depth, and files go before directories are moved, so a full disk has room for the move. A deletion that failed
//! is continued by the next one with the same trash.
//!
//! A tree may change while it is deleted: another container of the pod may hold a descriptor of it. So
//! entries are reached by their directory's descriptor and a name, no link is followed, and what an entry is
//! shows when it is opened or removed.

use crate::directory;
use rustix::fs::{AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long directories that others fill anew are emptied again, from the first one on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Deletes a directory and all below it. `trash` is a directory on the same file system that nobody else uses.
pub fn tree(tree: &Path, trash: &Path) -> io::Result<()> {
    let mut trash = Trash::open(trash)?;
    // The path is the agent's own, up to its last part.
    let (Some(parent), Some(name)) = (tree.parent(), tree.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match directory::open(CWD, parent) {
        Err(Errno::NOENT) => {}
        parent => trash.take(parent?.as_fd(), &CString::new(name.as_encoded_bytes())?)?,
    }
    while let Some(entry) = directory::any_entry(&trash.directory, |_| true)? {
        trash.delete(&entry)?;
    }
    Ok(())
}

/// Removes an empty directory; one that is gone is no error.
pub fn directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A directory whose entries have numbers for names. Most are directories.
struct Trash {
    directory: OwnedFd,
    next: u64,
    /// When nothing is emptied again any more, once something had to be.
    deadline: Option<Instant>,
}

impl Trash {
    fn open(path: &Path) -> io::Result<Trash> {
        let directory = directory::open(CWD, path)?;
        let mut next = 0;
        for entry in Dir::read_from(&directory)? {
            let number = entry?.file_name().to_str().ok().and_then(|name| name.parse::<u64>().ok());
            next = next.max(number.map_or(0, |number| number + 1));
        }
        Ok(Trash { directory, next, deadline: None })
    }

    /// Moves an entry of a directory here, whatever it is; one that is gone is no error.
    fn take(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let number = self.next.to_string();
        self.next += 1;
        let moved =
            insist(directory, name, || rustix::fs::renameat(directory, name, &self.directory, &number));
        absent_is_done(moved)
    }

    /// Deletes an entry; its directories become entries.
    fn delete(&mut self, name: &CStr) -> io::Result<()> {
        loop {
            match directory::open(&self.directory, name) {
                Ok(directory) => self.empty(directory.as_fd())?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return absent_is_done(self.remove(name, AtFlags::empty()));
                }
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
            match self.remove(name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) if self.is_patient() => {}
                removed => return absent_is_done(removed),
            }
        }
    }

    /// Removes the files of a directory, then moves the rest here.
    fn empty(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if entry.file_type() == FileType::Directory {
                continue;
            }
            let name = entry.file_name();
            match insist(directory, name, || rustix::fs::unlinkat(directory, name, AtFlags::empty())) {
                // A directory after all: the file system does not tell in its lists, or it has become one.
                Err(Errno::ISDIR) => {}
                removed => absent_is_done(removed)?,
            }
        }
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if !directory::is_dots(entry.file_name()) {
                self.take(directory, entry.file_name())?;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &CStr, flags: AtFlags) -> rustix::io::Result<()> {
        insist(self.directory.as_fd(), name, || rustix::fs::unlinkat(&self.directory, name, flags))
    }

    fn is_patient(&mut self) -> bool {
        Instant::now() < *self.deadline.get_or_insert_with(|| Instant::now() + PATIENCE)
    }
}

fn absent_is_done(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

/// Does `act` on an entry of a directory. Where that is not permitted, takes the attributes "immutable" and
/// "append only" off the entry and the directory, which a container with the capability may have set, and
/// tries once more.
fn insist(
    directory: BorrowedFd<'_>,
    name: &CStr,
    act: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match act() {
        Err(Errno::PERM) => {
            unmark(directory, name);
            unmark(directory, c".");
            act()
        }
        result => result,
    }
}

/// What has attributes that cannot be changed fails in the second try, with the reason to report.
fn unmark(directory: BorrowedFd<'_>, name: &CStr) {
    // Nothing but files and directories can be marked; a pipe must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::openat(directory, name, flags, Mode::empty())
        && let Ok(attributes) = rustix::fs::ioctl_getflags(&file)
    {
        let _ = rustix::fs::ioctl_setflags(&file, attributes - IFlags::IMMUTABLE - IFlags::APPEND);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn scratch() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, trash) = (scratch.path().join("upper"), scratch.path().join("trash"));
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::create_dir(&trash).unwrap();
        (scratch, upper, trash)
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let (scratch, upper, trash) = scratch();
        let kept = scratch.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        symlink(&kept, upper.join("a/link")).unwrap();
        fs::write(upper.join("a/b/file"), "x").unwrap();
        tree(&upper, &trash).unwrap();
        assert!(!upper.exists());
        assert!(kept.join("file").exists());
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    }

    #[test]
    fn tree_deeper_than_any_path_is_deleted() {
        let (scratch, upper, trash) = scratch();
        // 3000 levels of names of 250 bytes: built from below, as no path reaches the bottom.
        let name = "d".repeat(250);
        let next = scratch.path().join("next");
        for _ in 0..3000 {
            fs::create_dir(&next).unwrap();
            fs::rename(upper.join("a"), next.join(&name)).unwrap();
            fs::rename(&next, upper.join("a")).unwrap();
        }
        tree(&upper, &trash).unwrap();
        assert!(!upper.exists());
    }

    #[test]
    fn deletion_goes_on_where_an_earlier_one_stopped() {
        let (_scratch, upper, trash) = scratch();
        fs::create_dir_all(trash.join("7/left")).unwrap();
        tree(&upper, &trash).unwrap();
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    }

    #[test]
    fn link_in_the_trash_is_removed_and_not_followed() {
        let (scratch, upper, trash) = scratch();
        let kept = scratch.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        // As a directory leaves it that became a link between the look and the move.
        symlink(&kept, trash.join("7")).unwrap();
        fs::write(trash.join("8"), "x").unwrap();
        tree(&upper, &trash).unwrap();
        assert!(kept.join("file").exists());
        assert!(!upper.exists());
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    }

    #[test]
    fn link_in_place_of_the_tree_is_removed_and_not_followed() {
        let (scratch, upper, trash) = scratch();
        let link = scratch.path().join("link");
        symlink(&upper, &link).unwrap();
        tree(&link, &trash).unwrap();
        assert!(upper.join("a/b").exists() && fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn tree_that_others_fill_meanwhile_is_deleted_or_told() {
        let (scratch, upper, trash) = scratch();
        // As a container does it that holds a descriptor of a directory: it has the directory wherever it is
        // moved.
        let held = directory::open(CWD, &upper).unwrap();
        let kept = scratch.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let goes_on = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut number = 0u64;
                while goes_on.load(std::sync::atomic::Ordering::Relaxed) {
                    number += 1;
                    let name = (number % 64).to_string();
                    // Each fails where the other one is, or nothing any more.
                    let _ = rustix::fs::mkdirat(&held, &name, Mode::RWXU);
                    let _ = rustix::fs::unlinkat(&held, &name, AtFlags::REMOVEDIR);
                    let _ = rustix::fs::symlinkat(&kept, &held, &name);
                }
            });
            std::thread::sleep(Duration::from_millis(20));
            let deleted = tree(&upper, &trash);
            goes_on.store(false, std::sync::atomic::Ordering::Relaxed);
            if let Err(error) = deleted {
                assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty, "{error}");
            }
        });
        tree(&upper, &trash).unwrap();
        assert!(kept.join("file").exists());
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    }

    #[test]
    fn tree_that_is_gone_succeeds() {
        let (_scratch, upper, trash) = scratch();
        tree(&upper, &trash).unwrap();
        tree(&upper, &trash).unwrap();
    }
}
