//! The system calls of `hypervisor` that have no safe wrapper: clone3 into a cgroup, and process descriptors.
#![allow(unsafe_code)]

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `linux/sched.h`; the libc crate has these two with a type that is too narrow.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Lowest number for descriptors that a new process shall get: above all the numbers at which it shall find them.
const ABOVE_TARGETS: RawFd = 10;

/// A program to be started.
pub struct Program<'a> {
    /// Its file.
    pub path: &'a CStr,
    /// Its arguments, the name first.
    pub arguments: &'a [CString],
    /// What it finds at descriptors 0, 1, 2 and so on; at most [`ABOVE_TARGETS`].
    pub descriptors: &'a [BorrowedFd<'a>],
    /// The cgroup it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A process that was started.
pub struct Started {
    /// Its number.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
}

/// Starts a program in a session of its own, without environment, with default signal handling; answers when it runs.
///
/// Being born in its cgroup instead of moved there saves the kernel's grace period of a move (tens of milliseconds).
///
/// # Errors
/// Of the clone, or of the exec; nothing runs then.
pub fn spawn(program: &Program<'_>) -> io::Result<Started> {
    // All memory of the child is prepared here: between clone and exec only system calls are allowed.
    let mut argv: Vec<*const libc::c_char> = program.arguments.iter().map(|a| a.as_ptr()).collect();
    argv.push(ptr::null());
    let envp: [*const libc::c_char; 1] = [ptr::null()];
    let mut sources = Vec::with_capacity(program.descriptors.len());
    for descriptor in program.descriptors {
        sources.push(duplicate_above_targets(*descriptor)?);
    }
    let (failure, low_report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let report = duplicate_above_targets(low_report.as_fd())?;
    drop(low_report);
    let raw: Vec<RawFd> = sources.iter().chain([&report]).map(AsRawFd::as_raw_fd).collect();

    let started = clone_into(program.cgroup)?;
    let Some(started) = started else {
        // SAFETY: this is the child of the clone. `argv` and `envp` are arrays of C strings that end with a null
        // pointer, `raw` are open descriptors; all of them live in this process's own copy of the parent's memory.
        unsafe { become_program(program.path, &argv, &envp, &raw) };
    };
    // The child alone holds this end now: end of file says that exec closed it.
    drop(report);
    let mut errno = Vec::new();
    File::from(failure).read_to_end(&mut errno)?;
    match <[u8; 4]>::try_from(errno) {
        Ok(errno) => {
            waitid(Id::PIDFd(started.pidfd.as_fd()), WaitPidFlag::WEXITED)?;
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
        Err(_) => Ok(started),
    }
}

/// The rest of the child's life before exec: descriptors to their numbers, a session, exec. A failure is reported as an
/// errno on the last of `sources`.
///
/// # Safety
/// Must be called only in a new process that runs no other thread; `argv` and `envp` end with null pointers.
unsafe fn become_program(
    path: &CStr,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    sources: &[RawFd],
) -> ! {
    let (report, targets) = sources.split_last().map_or((-1, sources), |(last, rest)| (*last, rest));
    let mut placed = true;
    for (target, source) in (0..).zip(targets) {
        // SAFETY: dup2 takes no pointers; both numbers are this process's own.
        placed &= unsafe { libc::dup2(*source, target) } >= 0;
    }
    let beyond = libc::c_uint::try_from(targets.len()).unwrap_or(0);
    // What this process inherited itself is not for the program; the report's end closes with exec too.
    // SAFETY: close_range takes three integers, and only marks descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, beyond, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // SAFETY: setsid takes nothing, and cannot fail in a process that leads no group.
    unsafe { libc::setsid() };
    if placed {
        // SAFETY: the path is a C string, the arrays are as the caller promised; it returns only on failure.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    }
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
    // SAFETY: the buffer is four bytes on this stack.
    unsafe { libc::write(report, errno.as_ptr().cast(), errno.len()) };
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

/// clone3(2) like a fork, with a process descriptor, default signal handlers, and a cgroup; `None` in the child.
fn clone_into(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Started>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is a valid value: it is integers only.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD as u64) | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` outlives the call and names its own size; without CLONE_VM the child gets a copy of this memory,
    // and does nothing but system calls until exec (see `spawn`).
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
        Ok(pid) if pid > 0 => Ok(Some(Started { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
        _ => Err(io::Error::last_os_error()),
    }
}

fn duplicate_above_targets(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let duplicate = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(ABOVE_TARGETS))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// The descriptor of a process that this one need not be the parent of.
///
/// # Errors
/// ESRCH where there is none.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor that tasks can wait on.
///
/// # Errors
/// Where the event loop cannot take it.
pub fn awaitable(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd answers the same open descriptor as long as it lives, and the AsyncFd owns it from here on.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Kills the process behind a descriptor. One that has ended is no error.
///
/// # Errors
/// EPERM and the like.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null siginfo is allowed: the kernel fills in its own.
    let done =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, info, 0) };
    match io::Error::last_os_error() {
        error if done < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom};

    fn run(path: &str, arguments: &[&str], out: &File) -> io::Result<Started> {
        let path = CString::new(path).unwrap();
        let arguments: Vec<CString> = arguments.iter().map(|a| CString::new(*a).unwrap()).collect();
        let out = out.as_fd();
        spawn(&Program { path: &path, arguments: &arguments, descriptors: &[out; 4], cgroup: None })
    }

    #[test]
    fn program_finds_its_descriptors_and_no_environment() {
        let mut out = tempfile::tempfile().unwrap();
        let script = "env | grep -v -e ^PWD= -e ^SHLVL= -e ^_=; echo three >&3; ls /proc/self/fd | wc -l";
        let started = run("/bin/sh", &["sh", "-c", script], &out).unwrap();
        let id = Id::PIDFd(started.pidfd.as_fd());
        waitid(id, WaitPidFlag::WEXITED).unwrap();
        let mut said = String::new();
        out.seek(SeekFrom::Start(0)).unwrap();
        out.read_to_string(&mut said).unwrap();
        // 0 to 3, and the directory that ls reads.
        assert_eq!(said, "three\n5\n");
    }

    #[test]
    fn program_that_is_missing_is_an_error_of_spawn() {
        let out = tempfile::tempfile().unwrap();
        let error = run("/no/such/program", &["x"], &out).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn killing_twice_succeeds() {
        let out = tempfile::tempfile().unwrap();
        let started = run("/bin/sleep", &["sleep", "1000"], &out).unwrap();
        pidfd_kill(started.pidfd.as_fd()).unwrap();
        let id = Id::PIDFd(started.pidfd.as_fd());
        waitid(id, WaitPidFlag::WEXITED).unwrap();
        pidfd_kill(started.pidfd.as_fd()).unwrap();
        assert_eq!(pidfd_open(started.pid).err().unwrap().raw_os_error(), Some(libc::ESRCH));
    }
}
