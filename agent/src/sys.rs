//! What the agent asks of the kernel beyond files: the clock, the end of the VM, and the few ioctls that no crate offers
//! safely. The only file of the agent with unsafe code.
#![allow(unsafe_code)]

use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Time since the guest's kernel began.
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Ends the VM. What is not yet on a disk is lost, as all of it is thrown away with the pod.
pub fn power_off() -> ! {
    // With no way to switch off, the kernel halts; a restart ends the VM as well, as its VMM never boots twice.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // PID 1 must not end: the kernel would panic and hide the reason that was just written.
    loop {
        std::thread::park();
    }
}

/// `_IOC(read | write, 0xfd, command, 312)`: a command of device-mapper (`linux/dm-ioctl.h`).
const fn device_mapper_ioctl(command: u32) -> libc::Ioctl {
    ((3 << 30) | (312 << 16) | (0xfd << 8) | command) as libc::Ioctl
}

/// Sends a device-mapper request, a `struct dm_ioctl` with what follows it, and leaves the kernel's answer in its place.
pub fn device_mapper(control: &File, command: u32, request: &mut [u8]) -> io::Result<()> {
    let size = request.get(12..16).and_then(|field| field.try_into().ok()).map(u32::from_ne_bytes);
    if size.is_none_or(|size| size as usize != request.len() || request.len() < 312) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads and writes as many bytes as the header's `data_size` says, and the check above made that the
    // length of `request`, which is borrowed for writing until the call returns.
    let result =
        unsafe { libc::ioctl(control.as_raw_fd(), device_mapper_ioctl(command), request.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Most bytes that one call of [`add_entropy`] takes.
pub const MAX_ENTROPY: usize = 512;

/// `struct rand_pool_info` (`linux/random.h`) with room for its bytes.
#[repr(C)]
struct RandomPool {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MAX_ENTROPY],
}

/// `RNDADDENTROPY` and `RNDRESEEDCRNG`.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203u32 as libc::Ioctl;
const RESEED: libc::Ioctl = 0x5207;

/// Mixes secret random bytes into the kernel's pool, counts them in full, and makes the generator use them from now on.
/// Bytes past [`MAX_ENTROPY`] are ignored.
pub fn add_entropy(secret: &[u8]) -> io::Result<()> {
    let secret = &secret[..secret.len().min(MAX_ENTROPY)];
    let size = secret.len() as libc::c_int;
    let mut pool = RandomPool { entropy_bits: size * 8, size, bytes: [0; MAX_ENTROPY] };
    pool.bytes[..secret.len()].copy_from_slice(secret);
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads a `rand_pool_info` and `size` bytes behind it, all inside `pool`, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this command takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), RESEED) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
