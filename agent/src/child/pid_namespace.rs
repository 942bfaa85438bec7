//! The first process of a pid namespace that several containers share: collects orphans, and does nothing
//! else.
//!
//! Its containers see it as process 1, and one with `CAP_SYS_PTRACE` may take it over. So before it is told
//! of, it gives up all that it does not need for waiting: descriptors, mounts, user, capabilities and system
//! calls. It dies rather than keep any of these.

use super::filter::Filter;
use super::message::{Failure, Fault, Made};
use crate::sys::{self, process::Forked};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::pivot_root;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use std::io::{Read, Write, pipe};

/// A directory of the guest's to put an empty one in place of, in mounts that only this process has.
const PLACE: &str = "/tmp";

/// User and group of the process. It shares them with nobody, unless a container asks for the same.
const NOBODY: u32 = 65535;

/// What it calls from then on. The first two tell that it is ready.
const CALLS: [&str; 9] = [
    "write",
    "close_range",
    "wait4",
    "rt_sigprocmask",
    "rt_sigtimedwait",
    "rt_sigreturn",
    "restart_syscall",
    "exit",
    "exit_group",
];

/// Makes the namespace and its first process.
pub fn make() -> Result<Made, Failure> {
    let filter = Filter::compile(&profile())
        .map_err(|error| Failure::guest("seccomp filter of the pid namespace cannot be made", error))?;
    let (mut ready, tell) = pipe().map_err(|error| Failure::guest("pipe cannot be made", error))?;
    unshare(CloneFlags::CLONE_NEWPID)
        .map_err(|error| Failure::guest("pid namespace cannot be made", error))?;
    match sys::process::fork(None).map_err(|error| Failure::guest("process cannot be forked", error))? {
        Forked::Parent(pid) => {
            drop(tell);
            match ready.read(&mut [0]) {
                Ok(1) => Ok(Made { pid, terminal: None }),
                _ => Err(Failure {
                    fault: Fault::Guest,
                    message: "the first process of the pid namespace could not give up its privileges"
                        .to_owned(),
                }),
            }
        }
        Forked::Child => match confine(&filter) {
            Ok(()) => hold(tell),
            Err(_) => std::process::exit(1),
        },
    }
}

/// The seccomp profile: anything else fails with EPERM.
fn profile() -> LinuxSeccomp {
    let mut allowed = LinuxSyscall::default();
    allowed
        .set_names(CALLS.map(str::to_owned).to_vec())
        .set_action(LinuxSeccompAction::ScmpActAllow)
        .set_args(None);
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_architectures(None)
        .set_flags(None)
        .set_syscalls(Some(vec![allowed]));
    profile
}

/// Gives up what it does not need.
fn confine(filter: &Filter) -> std::io::Result<()> {
    // Without it the containers of a pod would all end when one of them uses up the memory.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    leave_the_guests_mounts()?;
    setgroups(&[])?;
    drop_bounding_set()?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    clear_ambient_capability_set()?;
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    filter.load()
}

/// Gives this process mounts of its own: one empty directory that nobody can write to. Containers that may
/// trace see its root as `/proc/1/root`, and the kernel stops them at their own root only: a root further
/// down among the guest's mounts would let them go up by `..` to the guest's own, and from there to all that
/// is mounted.
fn leave_the_guests_mounts() -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What follows must not reach the agent's.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", PLACE, "tmpfs", flags, c"mode=0555")?;
    chdir(PLACE)?;
    // The old root comes to lie on the new one (pivot_root(2)), and goes with all that is mounted in it.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

/// Capabilities that the kernel does not have are in no set.
fn drop_bounding_set() -> std::io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}

/// Lives until it is killed; the kernel then ends all of the namespace.
fn hold(mut tell: impl Write) -> ! {
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    // Blocked, so that an end between the two calls below is not missed: it stays pending.
    if ended.thread_block().is_err() || tell.write_all(&[0]).is_err() || sys::exec::close_all().is_err() {
        std::process::exit(1);
    }
    loop {
        while sys::process::wait_any_child().is_some() {}
        let _ = ended.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_is_a_filter() {
        assert!(Filter::compile(&profile()).is_ok());
        assert_eq!(profile().default_action(), LinuxSeccompAction::ScmpActErrno);
    }
}
