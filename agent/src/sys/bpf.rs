//! BPF programs that decide about the devices of a cgroup. `cgroup::devices` writes them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `BPF_PROG_LOAD` and `BPF_PROG_ATTACH`, the program's type and where it is attached (linux/bpf.h).
const LOAD_PROGRAM: libc::c_int = 5;
const ATTACH_PROGRAM: libc::c_int = 8;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// The groups below may have programs of their own; all must agree.
const ALLOW_MULTI: u32 = 2;

/// What `BPF_PROG_LOAD` reads; the kernel takes what is missing for zeros.
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// What `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachProgram {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has a BPF program decide about the devices of a cgroup, for as long as the cgroup lives.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    let load = LoadProgram {
        kind: CGROUP_DEVICE_PROGRAM,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: the kernel reads `load` and, by the pointers and the count in it, `program` and a string with
    // its end, all of which live across the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, LOAD_PROGRAM, &raw const load, size_of::<LoadProgram>()) };
    let program = match RawFd::try_from(fd) {
        // SAFETY: the kernel made this descriptor for us in the call above, so nobody else owns it.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    let attach = AttachProgram {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `attach`, which lives across the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, ATTACH_PROGRAM, &raw const attach, size_of::<AttachProgram>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
