//! Random bytes for the kernel's generator.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Most bytes that one call of [`add`] takes.
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

/// Mixes secret random bytes into the kernel's pool, counts them in full, and makes the generator use them
/// from now on. Bytes past [`MAX_ENTROPY`] are ignored.
pub fn add(secret: &[u8]) -> io::Result<()> {
    let secret = &secret[..secret.len().min(MAX_ENTROPY)];
    let size = secret.len() as libc::c_int;
    let mut pool = RandomPool { entropy_bits: size * 8, size, bytes: [0; MAX_ENTROPY] };
    pool.bytes[..secret.len()].copy_from_slice(secret);
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads a `rand_pool_info` and `size` bytes behind it, all inside `pool`, which
    // outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this command takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), RESEED) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
