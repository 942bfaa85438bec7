//! Forks an exec's process into its container's cgroup.
//!
//! A container that nests cgroups (systemd, Docker in Docker) has moved its processes to a group below its
//! own and handed controllers down: the kernel then takes no process into its own group any more (EBUSY). Its
//! execs are born in the group of its first process instead, as runc does it.
//!
//! Called by [`super::exec`], while mounts and cgroup namespace are still the agent's. The container says
//! what groups there are and where its first process is: no process may be born outside the container's own
//! group.

use super::message::Failure;
use crate::cgroup;
use crate::process::sys::{self, Forked};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Most groups that are tried: the container may move its first process on between the look and the fork.
const TRIES: u32 = 5;

/// Forks, with the child in `own`, the container's cgroup, or where the container's first process is below
/// it.
pub fn fork(own: &Path, first_pid: i32, first_process: BorrowedFd<'_>) -> Result<Forked, Failure> {
    let mut group = own.to_owned();
    let mut tries = 1;
    loop {
        match File::open(&group).and_then(|directory| sys::fork(Some(directory.as_fd()))) {
            Err(error) if takes_no_process(&error) && tries < TRIES => {
                group = group_of(own, first_pid, first_process)?;
                tries += 1;
            }
            forked => {
                return forked.map_err(|error| {
                    Failure::guest(&format!("process cannot be forked into {}", group.display()), error)
                });
            }
        }
    }
}

/// Whether a group hands controllers down, or is gone.
fn takes_no_process(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENODEV | libc::ENOENT))
}

/// The group that the container's first process is in now.
fn group_of(own: &Path, first_pid: i32, first_process: BorrowedFd<'_>) -> Result<PathBuf, Failure> {
    let read = fs::read(format!("/proc/{first_pid}/cgroup"));
    // It exists after the look, so its number was not another process's during it.
    sys::pidfd_send_signal(first_process, 0)
        .map_err(|_| Failure::request("the container's first process has ended".to_owned()))?;
    let text = read
        .map_err(|error| Failure::guest("cgroup of the container's first process cannot be read", error))?;
    inside(own, &text).ok_or_else(|| {
        let text = String::from_utf8_lossy(&text);
        Failure::request(format!(
            "the container's cgroup takes no process, and its first process is in none below it: {text:?}"
        ))
    })
}

/// The directory of a `/proc/PID/cgroup`; none where it does not lie in `own`.
fn inside(own: &Path, text: &[u8]) -> Option<PathBuf> {
    let path = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    let group = Path::new(cgroup::ROOT).join(OsStr::from_bytes(path));
    let plain = group.components().all(|part| !matches!(part, Component::ParentDir));
    (plain && group.starts_with(own)).then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_the_container_are_taken() {
        let own = Path::new("/sys/fs/cgroup/containers/c1");
        for (text, group) in [
            ("0::/containers/c1\n", ""),
            ("0::/containers/c1/init\n", "init"),
            ("1:name=systemd:/x\n0::/containers/c1/a/0::\n", "a/0::"),
        ] {
            assert_eq!(inside(own, text.as_bytes()), Some(own.join(group)), "{text}");
        }
        for text in [
            "",
            "0::/\n",
            "0::/agent\n",
            "0::/containers/c10\n",
            "0::/containers/c1/../c2\n",
            "0::/../containers/c1\n",
            "0:://sys/fs/cgroup/agent\n",
            "1:memory:/containers/c1\n",
        ] {
            assert_eq!(inside(own, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn group_of_a_first_process_that_is_elsewhere_is_refused() {
        let pid = std::process::id() as i32;
        let pidfd = sys::pidfd_open(pid).unwrap();
        let refused = group_of(Path::new("/sys/fs/cgroup/containers/c1"), pid, pidfd.as_fd()).unwrap_err();
        assert!(refused.message.contains("takes no process"), "{refused}");
    }

    #[test]
    fn number_of_an_ended_first_process_is_not_asked() {
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let pidfd = sys::pidfd_open(ended.id() as i32).unwrap();
        ended.wait().unwrap();
        // The number is another process's now.
        let refused = group_of(Path::new("/"), std::process::id() as i32, pidfd.as_fd()).unwrap_err();
        assert!(refused.message.contains("has ended"), "{refused}");
    }
}
