//! Deletes trees that containers filled: as deep and as wide as they liked, on a full disk, with files marked undeletable.
//!
//! Directories are moved into a flat trash directory before they are emptied, so neither the stack nor a path ever grows
//! with the depth, and files go before directories are moved, so a full disk has room for the move. A deletion that failed
//! is continued by the next one with the same trash.

use rustix::fs::{IFlags, Mode, OFlags};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Deletes a directory and all below it. `trash` is a directory on the same file system that nobody else uses.
pub fn tree(tree: &Path, trash: &Path) -> io::Result<()> {
    let mut trash = Trash::open(trash)?;
    match trash.take(tree) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    while let Some(directory) = trash.next()? {
        empty(&directory, &mut trash)?;
        insist(&directory, |path| fs::remove_dir(path))?;
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

/// Removes the files of a directory, then moves its directories into the trash.
fn empty(directory: &Path, trash: &mut Trash) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            insist(&entry.path(), |path| fs::remove_file(path))?;
        }
    }
    for entry in fs::read_dir(directory)? {
        trash.take(&entry?.path())?;
    }
    Ok(())
}

/// A directory whose entries are directories with numbers for names.
struct Trash {
    path: PathBuf,
    next: u64,
}

impl Trash {
    fn open(path: &Path) -> io::Result<Trash> {
        let mut next = 0;
        for entry in fs::read_dir(path)? {
            let number = entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            next = next.max(number.map_or(0, |number| number + 1));
        }
        Ok(Trash { path: path.to_owned(), next })
    }

    fn take(&mut self, directory: &Path) -> io::Result<()> {
        let target = self.path.join(self.next.to_string());
        self.next += 1;
        insist(directory, |path| fs::rename(path, &target))
    }

    fn next(&self) -> io::Result<Option<PathBuf>> {
        fs::read_dir(&self.path)?.next().map(|entry| Ok(entry?.path())).transpose()
    }
}

/// Does `act` on `path`. Where that is not permitted, takes the attributes "immutable" and "append only" off the path and
/// its directory, which a container with the capability may have set, and tries once more.
fn insist(path: &Path, act: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    match act(path) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            for marked in [Some(path), path.parent()].into_iter().flatten() {
                unmark(marked);
            }
            act(path)
        }
        result => result,
    }
}

/// A path whose attributes cannot be changed fails in the second try, with the reason to report.
fn unmark(path: &Path) {
    // Nothing but files and directories can be marked; a pipe must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(path, flags, Mode::empty())
        && let Ok(attributes) = rustix::fs::ioctl_getflags(&file)
    {
        let _ = rustix::fs::ioctl_setflags(&file, attributes - IFlags::IMMUTABLE - IFlags::APPEND);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

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
    fn tree_that_is_gone_succeeds() {
        let (_scratch, upper, trash) = scratch();
        tree(&upper, &trash).unwrap();
        tree(&upper, &trash).unwrap();
    }
}
