//! The last steps of a process before it executes a command, or before it only waits.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Puts the calling thread under a seccomp filter (`struct sock_filter`s, one after the other). Allocates
/// nothing.
pub fn load_seccomp_program(flags: u64, program: &[u8]) -> io::Result<()> {
    let length = u16::try_from(program.len() / size_of::<libc::sock_filter>()).map_err(io::Error::other)?;
    // The kernel copies the instructions and does not write to them; it asks for no alignment.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `program` and, by its pointer and count, instructions that live across the
    // call.
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
        // SAFETY: `file` is a C string, and both lists point to C strings that `self` owns and end with a
        // null pointer.
        unsafe { libc::execve(file.as_ptr(), self.args.as_ptr(), self.env.as_ptr()) };
        Errno::last()
    }
}

/// Closes every descriptor but the first three and `kept`, which the next exec closes. For a process that is
/// about to become a container's command: objects that still own a descriptor must not be used or dropped any
/// more, only left behind by the exec.
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

/// Gives the calling thread, and what it starts, a session keyring of its own, with nothing in it and without
/// a name by which others could join it.
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
    // SAFETY: SIG_DFL installs no handler, so no code of ours can run in a signal's context. It cannot fail
    // for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Closes every descriptor. For a process that will never use one again.
pub fn close_all() -> io::Result<()> {
    // SAFETY: the caller's process only computes and waits from here on; descriptors that objects still own
    // are not reused, as nothing is opened any more.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
