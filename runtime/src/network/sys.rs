//! The system calls of `network` that have no safe wrapper: making a tap device.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

nix::ioctl_write_int!(tun_set_iff, b'T', 202);
nix::ioctl_write_int!(tun_set_offload, b'T', 208);
nix::ioctl_write_ptr!(tun_set_header_size, b'T', 216, libc::c_int);

/// Size of the header before each frame: `virtio_net_hdr_v1`.
const HEADER_BYTES: libc::c_int = 12;

/// What the tap leaves to who reads its frames, as guests' drivers know how to do it: checksums
/// (`TUN_F_CSUM`), and segments of TCP over IPv4 and IPv6 that are larger than a frame (`TUN_F_TSO4`,
/// `TUN_F_TSO6`).
const OFFLOADS: u64 = 0x01 | 0x02 | 0x04;

/// A tap device named `name` in the network namespace of the calling thread, without protocol header, with virtio-net
/// headers (`linux/if_tun.h`), and with all the offloads of a pod's network card. The VMM sets nothing of it:
/// each setting takes a lock that all the node's networks share. It lasts as long as its descriptor.
///
/// # Errors
/// Of opening `/dev/net/tun`, and of the requests to it.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let tun: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: an all-zero ifreq is a valid value: integers, byte arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq at the address, which outlives the call.
    unsafe { tun_set_iff(tun.as_raw_fd(), (&raw mut request) as u64) }?;
    // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one int at the address, which outlives the
    // call.
    unsafe { tun_set_header_size(tun.as_raw_fd(), &HEADER_BYTES) }?;
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument as a number.
    unsafe { tun_set_offload(tun.as_raw_fd(), OFFLOADS) }?;
    Ok(tun.into())
}
