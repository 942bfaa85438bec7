//! The null device that a process without input reads: its container's, not the guest's.
//!
//! The agent gives such a process the guest's `/dev/null`, of which all processes of the pod have the one
//! inode: root of a container could change its mode and owner for all of them by its descriptor. Called by
//! [`super::command`] when the process is all that its command will be, so that whatever the container has
//! put at the path is opened with no more rights than the container's.

use nix::unistd::{dup2_stdin, pipe2};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Where a container has it.
const PATH: &str = "/dev/null";

/// Its number, in every kernel.
const DEVICE: (u32, u32) = (1, 3);

/// Replaces a standard input that is a null device by the container's own. A container that has none there
/// reads an empty pipe.
pub fn replace() -> io::Result<()> {
    if !is_null(std::io::stdin())? {
        return Ok(());
    }
    // A pipe at the path must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let own = match rustix::fs::openat(CWD, PATH, flags, Mode::empty()) {
        Ok(own) if is_null(&own)? => own,
        _ => empty_pipe()?,
    };
    Ok(dup2_stdin(own)?)
}

fn is_null(fd: impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(fd)?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == DEVICE)
}

fn empty_pipe() -> io::Result<OwnedFd> {
    let (reader, _) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn null_device_is_told_from_others() {
        assert!(is_null(File::open("/dev/null").unwrap()).unwrap());
        assert!(!is_null(File::open("/dev/zero").unwrap()).unwrap());
        assert!(!is_null(tempfile::tempfile().unwrap()).unwrap());
    }

    #[test]
    fn empty_pipe_ends_at_once() {
        assert_eq!(File::from(empty_pipe().unwrap()).read(&mut [0]).unwrap(), 0);
    }
}
