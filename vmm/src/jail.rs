//! The room that the process locks itself into before it reads a single byte from a client or a guest: no files, no
//! network, no capabilities, an identity of its own, and no file that it is given becomes longer than it must.
//!
//! `main` enters it right after the start; there is no way around it and no way back. What the VM needs afterwards comes
//! as descriptors over the control socket. The seccomp filters ([`crate::seccomp`]) close what is left.

use std::io;

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid, setsid},
};

use crate::sys;

/// What the process confines itself to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// User id that it takes, not 0.
    pub uid: u32,
    /// Group id that it takes, not 0.
    pub gid: u32,
    /// Bytes behind which it may write to no file: the size of the largest one that it is to change.
    pub largest_file: u64,
}

/// Arguments that do not say how the process is to confine itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// A word that no option expects.
    #[error("unknown argument {0:?}: the arguments are --uid N --gid N --largest-file BYTES")]
    Unknown(String),
    /// An option without a usable number.
    #[error("{option} needs {what}, got {value:?}")]
    Value {
        /// The option.
        option: &'static str,
        /// What would do.
        what: &'static str,
        /// What stood in the number's place.
        value: String,
    },
    /// An option that must be there is not.
    #[error(
        "{0} is missing: the process runs under an identity of the pod's own and with a limit for files only"
    )]
    Missing(&'static str),
    /// An option that is there twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
}

impl Confinement {
    /// Reads `--uid N --gid N --largest-file BYTES`, in any order.
    pub fn from_arguments(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let (mut uid, mut gid, mut largest_file) = (None, None, None);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_default();
            let (option, again) = match argument.as_str() {
                "--uid" => ("--uid", uid.replace(parse_id("--uid", value())?).is_some()),
                "--gid" => ("--gid", gid.replace(parse_id("--gid", value())?).is_some()),
                "--largest-file" => (
                    "--largest-file",
                    largest_file.replace(parse_bytes("--largest-file", value())?).is_some(),
                ),
                _ => return Err(ArgumentError::Unknown(argument)),
            };
            if again {
                return Err(ArgumentError::Twice(option));
            }
        }
        Ok(Self {
            uid: uid.ok_or(ArgumentError::Missing("--uid"))?,
            gid: gid.ok_or(ArgumentError::Missing("--gid"))?,
            largest_file: largest_file.ok_or(ArgumentError::Missing("--largest-file"))?,
        })
    }
}

/// Zero is root and the largest number means "no change" to the kernel.
fn parse_id(option: &'static str, value: String) -> Result<u32, ArgumentError> {
    match value.parse() {
        Ok(id) if id != 0 && id != u32::MAX => Ok(id),
        _ => Err(ArgumentError::Value { option, what: "a number from 1 to 4294967294", value }),
    }
}

/// The largest number means "no limit" to the kernel.
fn parse_bytes(option: &'static str, value: String) -> Result<u64, ArgumentError> {
    match value.parse() {
        Ok(bytes) if bytes != u64::MAX => Ok(bytes),
        _ => Err(ArgumentError::Value { option, what: "a number of bytes below 2^64 - 1", value }),
    }
}

/// A step of the jail that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("jail: cannot {step}, for which the process must be started as root")]
pub struct JailError {
    step: &'static str,
    source: io::Error,
}

fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, JailError> {
    result.map_err(|source| JailError { step, source: source.into() })
}

/// Locks the process in. It must have one thread.
pub fn enter(confinement: Confinement) -> Result<(), JailError> {
    // A signal to the daemon's process group, such as Ctrl-C at a terminal, must not reach pods. The leader of a group
    // is refused, which is as good.
    let _ = setsid();
    leave_namespaces()?;
    leave_root_directory()?;
    limit_resources()?;
    limit_file_size(confinement.largest_file)?;
    give_up_privileges(confinement)
}

/// A network namespace without interfaces, System V objects, names and a cgroup view of its own.
fn leave_namespaces() -> Result<(), JailError> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    step("make namespaces", unshare(namespaces))
}

/// Makes an empty read-only file system the root and lets go of the host's.
fn leave_root_directory() -> Result<(), JailError> {
    // Any directory that every host has will do as the place of the new root: only our mount namespace sees it.
    const PLACE: &str = "/proc";
    let none = None::<&str>;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let private = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    step("make mounts private", private)?;
    let options = Some("size=4k,nr_inodes=1,mode=0555");
    step("mount the empty root", mount(Some("empty"), PLACE, Some("tmpfs"), flags, options))?;
    step("enter the empty root", chdir(PLACE))?;
    // The old root lands on top of the new one, from where it is taken off.
    step("pivot to the empty root", pivot_root(".", "."))?;
    step("let go of the old root", umount2(".", MntFlags::MNT_DETACH))?;
    step("enter the empty root", chdir("/"))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    step("make the empty root read-only", mount(none, "/", none, read_only, none))
}

/// Descriptors enough for several hundred vsock connections and extents; no core files, which would hold guest memory.
///
/// Threads enough for whoever shares a user, as the kernel counts them together: a pod's VM has one for each
/// of its 64 processors at most, three of the VMM's own, and those in which some kernels work for KVM;
/// templates have a holder of one each, and one VM at a time that is made or rehearsed. What is no longer
/// ours shall not fill the host's table of tasks.
fn limit_resources() -> Result<(), JailError> {
    const DESCRIPTORS: u64 = 4096;
    const THREADS: u64 = 256;
    step("limit threads", setrlimit(Resource::RLIMIT_NPROC, THREADS, THREADS))?;
    step("limit descriptors", setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS))?;
    step("forbid core files", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    step("forbid locked memory", setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0))?;
    step("forbid message queues", setrlimit(Resource::RLIMIT_MSGQUEUE, 0, 0))
}

/// Has writes behind `bytes` of a file fail as for want of space. What the guest writes lies before that; what else a process
/// writes that is no longer ours could otherwise fill the node's disk.
pub fn limit_file_size(bytes: u64) -> Result<(), JailError> {
    // Without this, such a write would end the process instead of failing.
    step("ignore the signal of files that are too long", sys::ignore_file_size_signal())?;
    step("limit the size of files", setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes))
}

fn give_up_privileges(confinement: Confinement) -> Result<(), JailError> {
    step("empty the bounding set", empty_bounding_set())?;
    let (uid, gid) = (Uid::from_raw(confinement.uid), Gid::from_raw(confinement.gid));
    step("leave all groups", setgroups(&[]))?;
    step("take the group id", setresgid(gid, gid, gid))?;
    step("take the user id", setresuid(uid, uid, uid))?;
    step("clear ambient capabilities", sys::clear_ambient_capabilities())?;
    step("drop capabilities", sys::clear_capabilities())?;
    step("forbid new privileges", prctl::set_no_new_privs())?;
    step("forbid tracing", prctl::set_dumpable(false))
}

fn empty_bounding_set() -> io::Result<()> {
    for capability in 0.. {
        match sys::drop_bounding_capability(capability) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) && capability > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Confinement, ArgumentError> {
        Confinement::from_arguments(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_taken_in_any_order() {
        let confinement = Confinement { uid: 70001, gid: 70002, largest_file: 1 << 40 };
        assert_eq!(parse("--uid 70001 --gid 70002 --largest-file 1099511627776"), Ok(confinement));
        assert_eq!(parse("--largest-file 1099511627776 --gid 70002 --uid 70001"), Ok(confinement));
    }

    #[test]
    fn root_is_refused() {
        assert!(matches!(parse("--uid 0 --gid 1"), Err(ArgumentError::Value { option: "--uid", .. })));
        assert!(matches!(parse("--uid 1 --gid 0"), Err(ArgumentError::Value { option: "--gid", .. })));
    }

    #[test]
    fn missing_double_and_unknown_arguments_are_refused() {
        assert_eq!(parse("--uid 1"), Err(ArgumentError::Missing("--gid")));
        assert_eq!(parse(""), Err(ArgumentError::Missing("--uid")));
        assert_eq!(parse("--uid 1 --gid 1"), Err(ArgumentError::Missing("--largest-file")));
        assert_eq!(parse("--uid 1 --uid 2 --gid 3"), Err(ArgumentError::Twice("--uid")));
        assert_eq!(parse("--no-jail"), Err(ArgumentError::Unknown("--no-jail".into())));
        for value in ["-1", "x", "4294967295", "4294967296"] {
            assert!(matches!(parse(&format!("--uid {value} --gid 1")), Err(ArgumentError::Value { .. })));
        }
        assert!(matches!(parse("--uid"), Err(ArgumentError::Value { .. })));
        for bytes in ["", "-1", "10MiB", "18446744073709551615"] {
            assert!(matches!(parse(&format!("--largest-file {bytes}")), Err(ArgumentError::Value { .. })));
        }
    }
}
