//! Forks an exec's process into its container's cgroup.
//!
//! A container that nests cgroups (systemd, Docker in Docker) has moved its processes to a group below its
//! own and handed controllers down: the kernel then takes no process into its own group any more (EBUSY). Its
//! execs are born in the group of its first process instead, as runc does it.
//!
//! Called by [`super::exec`], which enters the container's mounts in between: what is looked at later is
//! opened before. The cgroup namespace is still the agent's at the fork. The container says what groups there
//! are and where its first process is: no process may be born outside the container's own group.

use super::message::Failure;
use crate::cgroup::layout;
use crate::sys::{self, process::Forked};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Most groups that are tried: the container may move its first process on between the look and the fork.
const TRIES: u32 = 5;

/// Where execs of a container are born.
pub struct Birthplace {
    own: PathBuf,
    directory: OwnedFd,
    /// `/proc/PID/cgroup` of the container's first process.
    first_cgroup: File,
}

impl Birthplace {
    /// Opens `own`, the container's cgroup, and the note in which group its first process is.
    pub fn open(own: &Path, first_pid: i32) -> Result<Birthplace, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, own, flags, Mode::empty()).map_err(|error| {
            Failure::guest(&format!("the container's cgroup {} cannot be opened", own.display()), error)
        })?;
        let first_cgroup = File::open(format!("/proc/{first_pid}/cgroup")).map_err(|error| {
            match error.kind() == io::ErrorKind::NotFound {
                true => ended(),
                false => Failure::guest("cgroup of the container's first process cannot be opened", error),
            }
        })?;
        Ok(Birthplace { own: own.to_owned(), directory, first_cgroup })
    }

    /// Forks, with the child in the container's cgroup, or where the container's first process is below it.
    pub fn fork(&mut self, first_process: BorrowedFd<'_>) -> Result<Forked, Failure> {
        let mut group = PathBuf::from(".");
        let mut tries = 1;
        loop {
            match self.below(&group).and_then(|directory| sys::process::fork(Some(directory.as_fd()))) {
                Err(error) if takes_no_process(&error) && tries < TRIES => {
                    group = self.group_of(first_process)?;
                    tries += 1;
                }
                forked => {
                    let group = self.own.join(group);
                    return forked.map_err(|error| {
                        Failure::guest(&format!("process cannot be forked into {}", group.display()), error)
                    });
                }
            }
        }
    }

    fn below(&self, group: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(&self.directory, group, flags, Mode::empty(), resolve)?)
    }

    /// The group that the container's first process is in now, below the container's own.
    fn group_of(&mut self, first_process: BorrowedFd<'_>) -> Result<PathBuf, Failure> {
        let mut text = Vec::new();
        let read = self.first_cgroup.rewind().and_then(|()| self.first_cgroup.read_to_end(&mut text));
        // It exists after the look, so its number was not another process's during it.
        sys::process::pidfd_send_signal(first_process, 0).map_err(|_| ended())?;
        read.map_err(|error| {
            Failure::guest("cgroup of the container's first process cannot be read", error)
        })?;
        inside(&self.own, &text).ok_or_else(|| {
            let text = String::from_utf8_lossy(&text);
            Failure::request(format!(
                "the container's cgroup takes no process, and its first process is in none below it: {text:?}"
            ))
        })
    }
}

fn ended() -> Failure {
    Failure::request("the container's first process has ended".to_owned())
}

/// Whether a group hands controllers down, or is gone.
fn takes_no_process(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENODEV | libc::ENOENT))
}

/// The group of a `/proc/PID/cgroup` as a path below `own`; none where it does not lie there.
fn inside(own: &Path, text: &[u8]) -> Option<PathBuf> {
    let path = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    let group = Path::new(layout::ROOT).join(OsStr::from_bytes(path));
    if group.components().any(|part| matches!(part, Component::ParentDir)) {
        return None;
    }
    // An empty path is none to the kernel.
    Some(Path::new(".").join(group.strip_prefix(own).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_the_container_are_taken() {
        let own = Path::new("/sys/fs/cgroup/containers/c1/own");
        for (text, group) in [
            ("0::/containers/c1/own\n", "."),
            ("0::/containers/c1/own/init\n", "./init"),
            ("1:name=systemd:/x\n0::/containers/c1/own/a/0::\n", "./a/0::"),
        ] {
            assert_eq!(inside(own, text.as_bytes()), Some(group.into()), "{text}");
        }
        for text in [
            "",
            "0::/\n",
            "0::/agent\n",
            "0::/containers/c1\n",
            "0::/containers/c1/owner\n",
            "0::/containers/c1/own/../../c2\n",
            "0::/../containers/c1/own\n",
            "0:://sys/fs/cgroup/agent\n",
            "1:memory:/containers/c1/own\n",
        ] {
            assert_eq!(inside(own, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn group_of_a_first_process_that_is_elsewhere_is_refused() {
        let own = tempfile::tempdir().unwrap();
        let pid = std::process::id() as i32;
        let pidfd = sys::process::pidfd_open(pid).unwrap();
        let mut birthplace = Birthplace::open(own.path(), pid).unwrap();
        let refused = birthplace.group_of(pidfd.as_fd()).unwrap_err();
        assert!(refused.message.contains("takes no process"), "{refused}");
    }

    #[test]
    fn number_of_an_ended_first_process_is_not_asked() {
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        let pidfd = sys::process::pidfd_open(gone.id() as i32).unwrap();
        gone.wait().unwrap();
        // The number is another process's now.
        let mut birthplace = Birthplace::open(Path::new("/"), std::process::id() as i32).unwrap();
        let refused = birthplace.group_of(pidfd.as_fd()).unwrap_err();
        assert!(refused.message.contains("has ended"), "{refused}");
    }

    #[test]
    fn groups_are_opened_below_the_containers_own() {
        let own = tempfile::tempdir().unwrap();
        std::fs::create_dir(own.path().join("init")).unwrap();
        std::os::unix::fs::symlink("/", own.path().join("link")).unwrap();
        let birthplace = Birthplace::open(own.path(), std::process::id() as i32).unwrap();
        for group in [".", "./init"] {
            birthplace.below(Path::new(group)).unwrap();
        }
        for group in ["..", "./link", "/"] {
            assert!(birthplace.below(Path::new(group)).is_err(), "{group}");
        }
    }
}
