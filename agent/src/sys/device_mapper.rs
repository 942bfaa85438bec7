//! The one ioctl of device-mapper. `storage::devicemapper` writes its requests.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOC(read | write, 0xfd, command, 312)`: a command of device-mapper (`linux/dm-ioctl.h`).
const fn ioctl_number(command: u32) -> libc::Ioctl {
    ((3 << 30) | (312 << 16) | (0xfd << 8) | command) as libc::Ioctl
}

/// Sends a device-mapper request, a `struct dm_ioctl` with what follows it, and leaves the kernel's answer in
/// its place.
pub fn send(control: &File, command: u32, request: &mut [u8]) -> io::Result<()> {
    let size = request.get(12..16).and_then(|field| field.try_into().ok()).map(u32::from_ne_bytes);
    if size.is_none_or(|size| size as usize != request.len() || request.len() < 312) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads and writes as many bytes as the header's `data_size` says, and the check above
    // made that the length of `request`, which is borrowed for writing until the call returns.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), ioctl_number(command), request.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
