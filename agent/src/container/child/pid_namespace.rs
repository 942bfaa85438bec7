//! The first process of a pid namespace that several containers share: collects orphans, and does nothing else.

use super::Made;
use super::message::Failure;
use crate::process::sys::{self, Forked};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{chdir, chroot};

/// Makes the namespace and its first process.
pub fn make() -> Result<Made, Failure> {
    unshare(CloneFlags::CLONE_NEWPID)
        .map_err(|error| Failure::guest("pid namespace cannot be made", error))?;
    match sys::fork(None).map_err(|error| Failure::guest("process cannot be forked", error))? {
        Forked::Parent(pid) => Ok(Made { pid, terminal: None }),
        Forked::Child => hold(),
    }
}

/// Makes a directory without files this process's root, which containers that may trace see as `/proc/1/root`: the list of its
/// descriptors, of which it has none. A process that keeps the guest's root does no good, so it ends.
fn leave_the_guests_root() {
    if chroot("/proc/self/fdinfo").and_then(|()| chdir("/")).is_err() {
        std::process::exit(1);
    }
}

/// Lives until it is killed; the kernel then ends all of the namespace.
fn hold() -> ! {
    // Without it the containers of a pod would all end when one of them uses up the memory.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    // Among them the socket to the agent, which only the child that answers for us may hold.
    let _ = sys::close_all();
    leave_the_guests_root();
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    // Blocked, so that an end between the two calls below is not missed: it stays pending.
    let _ = ended.thread_block();
    loop {
        while sys::wait_any_child().is_some() {}
        let _ = ended.wait();
    }
}
