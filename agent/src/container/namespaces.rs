//! The namespaces that a container was made with, kept for its execs.
//!
//! A first process may leave them: any user may make a user namespace, and in it a mount namespace where
//! files of its choice lie at the paths of the container's. An exec that followed it there would run such a
//! file with the ids and capabilities that the container has in the guest's own user namespace. So the
//! namespaces are opened while the first process still waits to be started and has run nothing of the
//! container's.
//!
//! The pid namespace is not among them: no process leaves its own, so the first process's pidfd names it.
//!
//! They hold the container's mounts, and with them its root and layers: [`super::remove()`] drops them first.

use crate::reaper::ProcessHandle;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The namespaces of one container, as descriptors.
#[derive(Debug)]
pub struct Namespaces {
    mounts: File,
    others: Vec<File>,
}

impl Namespaces {
    /// Those that a container of this spec has for itself; `first` is its first process and has not been
    /// started.
    pub fn of(first: &ProcessHandle, spec: &Spec) -> io::Result<Namespaces> {
        let open = |name: &str| File::open(format!("/proc/{}/ns/{name}", first.pid()));
        let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let names = listed.into_iter().flatten().filter_map(|namespace| name(namespace.typ()));
        let namespaces =
            Namespaces { mounts: open("mnt")?, others: names.map(open).collect::<io::Result<_>>()? };
        // Alive after the look: so they were this process's, and not those of another one with its number.
        if first.has_ended() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its first process has ended"));
        }
        Ok(namespaces)
    }

    /// The mount namespace, which every container has for itself.
    pub fn mounts(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }

    /// The others, in no order that matters.
    pub fn others(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.others.iter().map(AsFd::as_fd)
    }
}

/// The name of a namespace in `/proc/PID/ns`, of those that are entered beside the mount and pid namespaces.
fn name(namespace: LinuxNamespaceType) -> Option<&'static str> {
    match namespace {
        LinuxNamespaceType::Cgroup => Some("cgroup"),
        LinuxNamespaceType::Uts => Some("uts"),
        LinuxNamespaceType::Ipc => Some("ipc"),
        LinuxNamespaceType::Network => Some("net"),
        LinuxNamespaceType::Mount | LinuxNamespaceType::Pid => None,
        // Refused when the container is created.
        LinuxNamespaceType::User | LinuxNamespaceType::Time => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaper::Reaper;
    use std::process::{Command, Stdio};

    #[test]
    fn namespaces_of_the_spec_are_opened() {
        let mut sleeper = Command::new("sleep");
        sleeper.arg("100").stdin(Stdio::null()).stdout(Stdio::null());
        let first = Reaper::default().spawn(&mut sleeper).unwrap();
        let namespaces = serde_json::json!([{ "type": "mount" }, { "type": "pid" }, { "type": "cgroup" }]);
        let spec = serde_json::json!({ "ociVersion": "1.2.0", "linux": { "namespaces": namespaces } });
        let kept = Namespaces::of(&first, &serde_json::from_value(spec).unwrap()).unwrap();
        let id = |file: &File| {
            let fd = std::os::fd::AsRawFd::as_raw_fd(file);
            std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap()
        };
        let own = |name| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(id(&kept.mounts), own("mnt"));
        assert_eq!(kept.others.iter().map(id).collect::<Vec<_>>(), [own("cgroup")]);
        first.signal(libc::SIGKILL).unwrap();
    }
}
