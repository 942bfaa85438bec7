//! Directories and files that only the daemon's user may read: records hold environments with their secrets,
//! and logs of VMMs hold what guests print.
//!
//! Used by every module that keeps state on disk. What an earlier version left open to others is closed when
//! it is found, which is when the daemon starts.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Mode of a directory.
const DIRECTORY: u32 = 0o700;

/// Mode of a file.
const FILE: u32 = 0o600;

/// Permissions of the group and of others.
const OTHERS: u32 = 0o077;

/// Makes a directory that others cannot enter, or takes one that is there and locks others out.
///
/// # Errors
/// Where it cannot be made, or belongs to another user, who could open it again.
pub fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIRECTORY).recursive(true).create(path)?;
    lock_out(&File::open(path)?, path)
}

/// Makes a file that others cannot read, in place of what a killed daemon left under its name.
///
/// # Errors
/// Those of the system.
pub fn new_file(path: &Path) -> io::Result<File> {
    let make = || OpenOptions::new().read(true).write(true).create_new(true).mode(FILE).open(path);
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            make()
        }
        made => made,
    }
}

/// Takes permissions of the group and of others off a file or directory.
///
/// # Errors
/// Where it belongs to another user.
pub fn lock_out(file: &File, path: &Path) -> io::Result<()> {
    let found = file.metadata()?;
    let (owner, we) = (found.uid(), nix::unistd::geteuid().as_raw());
    if owner != we {
        let reason =
            format!("it belongs to user {owner}, and not to {we}, who runs the daemon: change its owner");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    if found.mode() & OTHERS != 0 {
        file.set_permissions(Permissions::from_mode(found.mode() & !OTHERS & 0o7777))?;
        tracing::warn!(path = %path.display(), mode = format!("{:o}", found.mode() & 0o7777), "was open to others: closed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn directory_is_made_for_its_owner_alone_and_an_open_one_is_closed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn file_is_for_its_owner_alone_also_where_an_open_one_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.new");
        fs::write(&path, "half").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let left = File::open(&path).unwrap();
        drop(new_file(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
        assert_ne!(
            left.metadata().unwrap().ino(),
            fs::metadata(&path).unwrap().ino(),
            "who had it open has it still"
        );
    }

    #[test]
    fn file_of_another_user_is_refused() {
        let own = tempfile::NamedTempFile::new().unwrap();
        let others = match std::os::unix::fs::chown(own.path(), Some(12345), None) {
            Ok(()) => own.path(),
            // Whoever may not give files away is not root.
            Err(_) => Path::new("/etc/passwd"),
        };
        let error = lock_out(&File::open(others).unwrap(), others).unwrap_err();
        assert!(error.to_string().contains("change its owner"), "{error}");
    }
}
