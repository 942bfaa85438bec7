//! System calls about processes and file descriptors that no crate of ours offers safely.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::io::unix::AsyncFd;

/// File descriptors that one message may carry: an exec has two of its own, three streams and up to five
/// namespaces.
pub const MAX_FDS: usize = 10;

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

/// Forks; with a cgroup directory, the child is born in that cgroup: moving it there later would wait for an RCU grace
/// period. The caller must be single-threaded, as the child goes on in Rust code.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let flags = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let mut args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child gets a copy of all memory, like fork(2), and without a stack it keeps the
    // caller's; `args` lives across the call and its size is told. Callers are the one-shot children, which have one
    // thread, so no lock can be held by a thread that the child lacks.
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

/// Puts the calling thread under a seccomp filter (`struct sock_filter`s, one after the other). Allocates nothing.
pub fn load_seccomp_program(flags: u64, program: &[u8]) -> io::Result<()> {
    let length = u16::try_from(program.len() / size_of::<libc::sock_filter>()).map_err(io::Error::other)?;
    // The kernel copies the instructions and does not write to them; it asks for no alignment.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `program` and, by its pointer and count, instructions that live across the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A command line that can be executed without any allocation.
pub struct Prepared {
    files: Vec<CString>,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    /// What `args` and `env` point into.
    _strings: [Vec<CString>; 2],
}

impl Prepared {
    /// Files to try in turn, the arguments and the environment.
    pub fn new(files: Vec<CString>, args: Vec<CString>, env: Vec<CString>) -> Prepared {
        let pointers = |strings: &[CString]| {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
        };
        Prepared { files, args: pointers(&args), env: pointers(&env), _strings: [args, env] }
    }

    /// The files, in order.
    pub fn files(&self) -> &[CString] {
        &self.files
    }

    /// Executes one of the files; answers why that failed.
    pub fn execute(&self, file: &CString) -> Errno {
        // SAFETY: `file` is a C string, and both lists point to C strings that `self` owns and end with a null pointer.
        unsafe { libc::execve(file.as_ptr(), self.args.as_ptr(), self.env.as_ptr()) };
        Errno::last()
    }
}

/// Closes every descriptor but the first three and `kept`, which the next exec closes. For a process that is about to become a
/// container's command: objects that still own a descriptor must not be used or dropped any more, only left behind by the exec.
pub fn close_all_but_standard_and(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd().cast_unsigned();
    let close = |first: u32, last: u32| match first <= last {
        // SAFETY: the caller neither uses nor drops what owns these descriptors until the exec, see above.
        true => unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) },
        false => 0,
    };
    // SAFETY: F_SETFD only changes a flag of a descriptor that the caller holds.
    let marked = unsafe { libc::fcntl(kept.cast_signed(), libc::F_SETFD, libc::FD_CLOEXEC) };
    if marked < 0 || close(3, kept.saturating_sub(1)) < 0 || close((kept + 1).max(3), u32::MAX) < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the calling thread, and what it starts, a session keyring of its own, with nothing in it and without a
/// name by which others could join it.
pub fn join_new_session_keyring() -> io::Result<()> {
    let no_name: *const libc::c_char = std::ptr::null();
    // SAFETY: keyctl(2) takes a null pointer for no name, and then reads no memory of ours.
    let serial = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING as libc::c_long, no_name)
    };
    if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives SIGPIPE its default action again.
pub fn stop_ignoring_broken_pipes() {
    // SAFETY: SIG_DFL installs no handler, so no code of ours can run in a signal's context. It cannot fail for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Closes every descriptor. For a process that will never use one again.
pub fn close_all() -> io::Result<()> {
    // SAFETY: the caller's process only computes and waits from here on; descriptors that objects still own are not
    // reused, as nothing is opened any more.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends bytes and descriptors in one message. At least one byte must go along.
pub fn send_with_fds(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives bytes and the descriptors that came with them, which will be closed by an exec.
pub fn receive_with_fds(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel made these descriptors for us in this call, so nobody else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// `BPF_PROG_LOAD` and `BPF_PROG_ATTACH`, the program's type and where it is attached (linux/bpf.h).
const LOAD_PROGRAM: libc::c_int = 5;
const ATTACH_PROGRAM: libc::c_int = 8;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// The groups below may have programs of their own; all must agree.
const ALLOW_MULTI: u32 = 2;

/// What `BPF_PROG_LOAD` reads; the kernel takes what is missing for zeros.
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// What `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachProgram {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has a BPF program decide about the devices of a cgroup, for as long as the cgroup lives.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    let load = LoadProgram {
        kind: CGROUP_DEVICE_PROGRAM,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: the kernel reads `load` and, by the pointers and the count in it, `program` and a string with its end, all of
    // which live across the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, LOAD_PROGRAM, &raw const load, size_of::<LoadProgram>()) };
    let program = match RawFd::try_from(fd) {
        // SAFETY: the kernel made this descriptor for us in the call above, so nobody else owns it.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    let attach = AttachProgram {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `attach`, which lives across the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, ATTACH_PROGRAM, &raw const attach, size_of::<AttachProgram>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the event loop tell when a descriptor, which must not block, can be read or written.
pub fn watch_readiness(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped, and the AsyncFd owns it until then.
    let watched = unsafe { AsyncFd::register(fd) };
    Ok(watched?)
}

/// Makes `uid` the owner of the terminal that `controller` controls: a program that is not root opens it anew by `/dev/stdout`. The
/// group stays, which is that of terminals.
pub fn give_terminal(controller: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and touches no memory of ours.
    let fd = unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us in the call above, so nobody else owns it.
    let terminal = unsafe { OwnedFd::from_raw_fd(fd) };
    std::os::unix::fs::fchown(&terminal, Some(uid), None)
}

/// Sets the size of the terminal of which `master` is the controlling end, in characters.
pub fn set_terminal_size(master: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::Duration;

    /// A keyring is its thread's, so each thread of the test begins with the one of whoever runs it.
    #[test]
    fn session_keyrings_are_new_ones() {
        let session = || {
            const SESSION: libc::c_long = -3;
            let get = libc::KEYCTL_GET_KEYRING_ID as libc::c_long;
            // SAFETY: keyctl(2) takes a keyring's id and whether to make one, and touches no memory of ours.
            unsafe { libc::syscall(libc::SYS_keyctl, get, SESSION, 0) }
        };
        let join = move || {
            std::thread::spawn(move || (session(), join_new_session_keyring(), session())).join().unwrap()
        };
        let ((before, one, first), (_, other, second)) = (join(), join());
        if let Err(error) = one {
            // Container engines keep keys from what runs in them.
            assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)), "{error}");
            return;
        }
        other.unwrap();
        assert!(first > 0 && second > 0 && first != second && first != before, "{before} {first} {second}");
    }

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
