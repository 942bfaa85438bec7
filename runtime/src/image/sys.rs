//! What the jailed processes need of the system that no crate of ours offers safely: the numbers of their
//! descriptors.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Number at which a converter finds its socket.
const SOCKET: RawFd = 3;

/// Closes every descriptor but the three standard ones and, where there is one, the socket.
///
/// # Errors
/// A kernel without close_range(2), before Linux 5.9.
pub fn close_others(has_socket: bool) -> nix::Result<()> {
    let first = if has_socket { SOCKET + 1 } else { SOCKET };
    // SAFETY: close_range(2) takes three integers. The process has just started and owns no descriptor beyond those that
    // stay, so no owner is left with a number that is no longer its own.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    Errno::result(result).map(drop)
}

/// Lets the program of `command` find `descriptor` as descriptor 3.
///
/// # Errors
/// No descriptor is left.
pub fn give_as_3(command: &mut Command, descriptor: impl AsFd) -> io::Result<()> {
    // above 3, so that dup2 makes a copy, which the program inherits
    let number = fcntl(descriptor.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(SOCKET + 1))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    let source = unsafe { OwnedFd::from_raw_fd(number) };
    let place = move || {
        use std::os::fd::AsRawFd;
        // SAFETY: dup2 takes two integers; 3 is a number of the child's own.
        Errno::result(unsafe { libc::dup2(source.as_raw_fd(), SOCKET) })?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(place) };
    Ok(())
}

/// Input and output of a jailed process, which has nothing else at these numbers. Called once.
///
/// # Errors
/// A descriptor that is not there.
pub fn streams() -> nix::Result<[OwnedFd; 2]> {
    require_open(&[0, 1])?;
    // SAFETY: it is open, and the process, single-threaded and just started, uses standard input in no other way.
    let input = unsafe { OwnedFd::from_raw_fd(0) };
    // SAFETY: it is open, and the process never prints.
    let output = unsafe { OwnedFd::from_raw_fd(1) };
    Ok([input, output])
}

/// The socket of a converter. Called once.
///
/// # Errors
/// As of [`streams`].
pub fn socket() -> nix::Result<OwnedFd> {
    require_open(&[SOCKET])?;
    // SAFETY: it is open, and nothing in this process knows its number but this function.
    Ok(unsafe { OwnedFd::from_raw_fd(SOCKET) })
}

fn require_open(numbers: &[RawFd]) -> nix::Result<()> {
    for number in numbers {
        // SAFETY: fcntl with F_GETFD takes two integers and changes nothing.
        Errno::result(unsafe { libc::fcntl(*number, libc::F_GETFD) })?;
    }
    Ok(())
}

/// Takes descriptors that came with a message.
pub fn received(numbers: &[RawFd]) -> Vec<OwnedFd> {
    // SAFETY: the kernel has just made these descriptors for this process, and the message told nobody else.
    numbers.iter().map(|number| unsafe { OwnedFd::from_raw_fd(*number) }).collect()
}
