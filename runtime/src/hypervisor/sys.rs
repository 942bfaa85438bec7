//! The system calls of `hypervisor` that have no safe wrapper: clone3 into a cgroup, and process descriptors.
#![allow(unsafe_code)]

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use std::arch::asm;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `linux/sched.h`; the libc crate has these two with a type that is too narrow.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Lowest number for descriptors that a new process shall get: above all the numbers at which it shall find them.
const ABOVE_TARGETS: RawFd = 10;

/// Bytes of stack for a process on its way to exec: a few system calls. It is a multiple of 16.
const STACK: usize = 32 << 10;

/// A program to be started. It owns all that it needs: the thread that starts it may outlast whoever asked
/// for it.
pub struct Program {
    /// Its file.
    pub path: CString,
    /// Its arguments, the name first.
    pub arguments: Vec<CString>,
    /// What it finds at descriptors 0, 1, 2 and so on, see [`above_targets`].
    pub descriptors: Vec<OwnedFd>,
    /// The cgroup it is born in.
    pub cgroup: Option<OwnedFd>,
}

/// A process that was started. If it is dropped before its descriptor was taken, nobody waits for the process
/// any more: it is killed and reaped.
pub struct Started {
    /// Its number.
    pub pid: i32,
    pidfd: Option<OwnedFd>,
}

impl Started {
    /// The process descriptor; the process is the caller's from here on.
    pub fn into_pidfd(mut self) -> OwnedFd {
        self.pidfd.take().expect("only this and the drop, which both consume it, take the descriptor")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(pidfd) = self.pidfd.take() else { return };
        if let Err(error) = pidfd_kill(pidfd.as_fd()) {
            tracing::error!(pid = self.pid, %error, "process that nobody waits for cannot be killed");
        }
        // In a thread: a process in a cgroup that hardly gets a processor takes its time to end.
        let reap = move || waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
        let reaper = std::thread::Builder::new().name("reaper".to_owned()).spawn(reap);
        if let Err(error) = reaper {
            tracing::error!(pid = self.pid, %error, "process that nobody waits for stays a zombie");
        }
    }
}

/// Starts a program in a session of its own, without environment, with default signal handling; answers when it runs.
/// The calling thread sleeps until then. That is the time which the child needs to get to its exec on the
/// processors of its cgroup: seconds, where that is starved, so no thread that serves tasks may call this.
///
/// Being born in its cgroup instead of moved there saves the kernel's grace period of a move (tens of milliseconds); sharing
/// this process's memory until exec, as vfork does, saves a copy of its page tables and the faults that follow a copy.
///
/// # Errors
/// Of the clone, or of the exec; nothing runs then.
pub fn spawn(program: &Program) -> io::Result<Started> {
    // All memory of the child is prepared here: between clone and exec only system calls are allowed.
    let mut argv: Vec<*const libc::c_char> = program.arguments.iter().map(|a| a.as_ptr()).collect();
    argv.push(ptr::null());
    let raw: Vec<RawFd> = program.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let errand = Errand {
        path: program.path.as_ptr(),
        argv: argv.as_ptr(),
        envp: [ptr::null()],
        sources: &raw,
        failure: AtomicI32::new(0),
    };
    let started = clone_into(program.cgroup.as_ref().map(AsFd::as_fd), &errand)?;
    match errand.failure.into_inner() {
        0 => Ok(started),
        errno => {
            waitid(Id::PIDFd(started.into_pidfd().as_fd()), WaitPidFlag::WEXITED)?;
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// What a new process does until it becomes another program. It lies in the parent's memory, which the two share so long.
struct Errand<'a> {
    path: *const libc::c_char,
    /// C strings, with a null pointer at the end, like `envp`.
    argv: *const *const libc::c_char,
    envp: [*const libc::c_char; 1],
    /// Open descriptors for 0, 1, 2 and so on.
    sources: &'a [RawFd],
    /// Why there is no other program, as an errno.
    failure: AtomicI32,
}

/// The child's life before exec: descriptors to their numbers, a session, exec.
///
/// # Safety
/// Must be entered only by [`clone_into`], in a process that shares its parent's memory but not its descriptors, on a stack
/// of its own; the errand is as its fields say.
unsafe extern "C" fn become_program(errand: &Errand<'_>) -> ! {
    let mut placed = true;
    for (target, source) in (0..).zip(errand.sources) {
        // SAFETY: dup2 takes no pointers; both numbers are this process's own.
        placed &= unsafe { libc::dup2(*source, target) } >= 0;
    }
    let beyond = libc::c_uint::try_from(errand.sources.len()).unwrap_or(0);
    // What this process inherited itself is not for the program.
    // SAFETY: close_range takes three integers, and only marks descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, beyond, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // SAFETY: setsid takes nothing, and cannot fail in a process that leads no group.
    unsafe { libc::setsid() };
    if placed {
        // SAFETY: the path is a C string, the arrays end with null pointers; it returns only on failure.
        unsafe { libc::execve(errand.path, errand.argv, errand.envp.as_ptr()) };
    }
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    errand.failure.store(errno, Ordering::Relaxed);
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

/// clone3(2) like vfork, with a process descriptor, default signal handlers, and a cgroup. The calling thread sleeps until the
/// child has become another program or has ended.
fn clone_into(cgroup: Option<BorrowedFd<'_>>, errand: &Errand<'_>) -> io::Result<Started> {
    // The C library's clone cannot name a cgroup, and its vfork returns twice, which no Rust function may.
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is a valid value: it is integers only.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    args.flags = flags as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = STACK as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let pid: i64;
    // SAFETY: `args` outlives the call and names its own size. The parent goes on at label 2 with its registers, less those
    // that a system call may change. The child has the new stack, whose end is aligned as the ABI wants it before a call,
    // and never returns. What it reads is the errand and what that points to, and what it writes is the errand's atomic and
    // this thread's errno; CLONE_VFORK keeps this thread, which owns all of it and the stack, asleep until the child needs
    // them no more.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call {child}",
            "2:",
            child = sym become_program,
            inlateout("rax") libc::SYS_clone3 => pid,
            in("rdi") &raw mut args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") errand,
            out("rcx") _,
            out("r11") _,
        );
    }
    match i32::try_from(pid) {
        // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
        Ok(pid) if pid > 0 => Ok(Started { pid, pidfd: Some(unsafe { OwnedFd::from_raw_fd(pidfd) }) }),
        Ok(errno) => Err(io::Error::from_raw_os_error(-errno)),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Duplicates descriptors for [`Program::descriptors`]: their numbers are above those at which a program
/// finds them, so that putting one in its place closes no other. At most [`ABOVE_TARGETS`].
///
/// # Errors
/// EMFILE.
pub fn above_targets(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let duplicate = |descriptor: &BorrowedFd<'_>| {
        let number = nix::fcntl::fcntl(*descriptor, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(ABOVE_TARGETS))?;
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    descriptors.iter().map(duplicate).collect()
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
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};

    fn run(path: &str, arguments: &[&str], out: &File) -> io::Result<Started> {
        let path = CString::new(path).unwrap();
        let arguments = arguments.iter().map(|a| CString::new(*a).unwrap()).collect();
        let descriptors = above_targets(&[out.as_fd(); 4]).unwrap();
        spawn(&Program { path, arguments, descriptors, cgroup: None })
    }

    #[test]
    fn program_finds_its_descriptors_and_no_environment() {
        let mut out = tempfile::tempfile().unwrap();
        let script = "env | grep -v -e ^PWD= -e ^SHLVL= -e ^_=; echo three >&3; ls /proc/self/fd | wc -l";
        let pidfd = run("/bin/sh", &["sh", "-c", script], &out).unwrap().into_pidfd();
        waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap();
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
        let (pid, pidfd) = (started.pid, started.into_pidfd());
        pidfd_kill(pidfd.as_fd()).unwrap();
        waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap();
        pidfd_kill(pidfd.as_fd()).unwrap();
        assert_eq!(pidfd_open(pid).err().unwrap().raw_os_error(), Some(libc::ESRCH));
    }
}
