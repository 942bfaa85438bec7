//! Processes: descriptors of them, signals, ends, and the fork of the one-shot child.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A descriptor that names process `pid` and never another one that is given its number later.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel made this descriptor for us in the call above, so nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to the process that `pidfd` names.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: pidfd_send_signal(2) accepts a null siginfo and then reads no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Collects one child that has ended, if there is one.
pub fn collect_any_child() -> Option<(i32, ExitStatus)> {
    wait_any(libc::WNOHANG)
}

/// Waits until a child has ended and collects it; none if there are no children.
pub fn wait_any_child() -> Option<(i32, ExitStatus)> {
    wait_any(0)
}

fn wait_any(options: i32) -> Option<(i32, ExitStatus)> {
    wait(-1, options)
}

/// Not nix's `waitpid`: that one fails on real-time signals, after the child is gone.
///
/// A child that has asked to be traced (`PTRACE_TRACEME`) is traced by its parent, who is then told of its
/// stops, too, asked or not. They are no ends: such a child stays stopped until it is killed.
fn wait(child: i32, options: i32) -> Option<(i32, ExitStatus)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` lives across the call, which writes one int to it.
        let pid = unsafe { libc::waitpid(child, &mut status, options) };
        if pid > 0 && !libc::WIFEXITED(status) && !libc::WIFSIGNALED(status) {
            continue;
        }
        if pid > 0 {
            return Some((pid, ExitStatus::from_raw(status)));
        }
        if pid == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Which of the two processes a fork returned in.
#[derive(Debug)]
pub enum Forked {
    /// In the process that called; the new one's id in the caller's pid namespace.
    Parent(i32),
    /// In the new process.
    Child,
}

/// Forks; with a cgroup directory, the child is born in that cgroup: moving it there later would wait for an
/// RCU grace period. The caller must be single-threaded, as the child goes on in Rust code.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let flags = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let mut args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child gets a copy of all memory, like fork(2), and without a stack it
    // keeps the caller's; `args` lives across the call and its size is told. Callers are the one-shot
    // children, which have one thread, so no lock can be held by a thread that the child lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent(pid as i32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `CLONE_INTO_CGROUP` of linux/sched.h, a 64-bit flag that only clone3 takes.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn stop_of_a_traced_child_is_no_end() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let trace_me = || {
            // SAFETY: PTRACE_TRACEME ignores its other arguments.
            let result = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: one system call, which allocates nothing and takes no lock.
        let command = unsafe { command.pre_exec(trace_me) };
        #[expect(clippy::zombie_processes, reason = "it is waited for by what is tested")]
        let child = command.spawn().unwrap();
        let pid = child.id() as i32;
        // Its execve stops it.
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        while !stat().contains(") t ") {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(wait(pid, libc::WNOHANG), None);
        pidfd_send_signal(pidfd_open(pid).unwrap().as_fd(), libc::SIGKILL).unwrap();
        let (ended, status) = wait(pid, 0).unwrap();
        assert_eq!((ended, status.signal()), (pid, Some(libc::SIGKILL)));
    }
}
