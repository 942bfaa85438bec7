//! Terminals: their owner and their size.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Makes `uid` the owner of the terminal that `controller` controls: a program that is not root opens it anew
/// by `/dev/stdout`. The group stays, which is that of terminals.
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
