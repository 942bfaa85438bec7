//! The one system call of `jail` that no crate of ours offers safely.
#![allow(unsafe_code)]

use nix::errno::Errno;

/// Marks every descriptor but the first three to be closed by the next exec.
pub fn close_others_on_exec() -> nix::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC takes three integers, and only sets flags of descriptors.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}
