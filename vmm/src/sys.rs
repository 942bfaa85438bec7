//! System calls without a safe wrapper: descriptors that come from outside, capabilities, a file that is mapped to be written,
//! and the signal that brings a vCPU thread back from the guest.
#![allow(unsafe_code)]

use std::{
    cell::Cell,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::thread::JoinHandleExt,
    },
    ptr,
    sync::atomic::AtomicU8,
    thread::JoinHandle,
};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// Closes every descriptor from `first` on.
pub fn close_descriptors_from(first: RawFd) -> io::Result<()> {
    // SAFETY: called at the start of `main`, when nobody owns a descriptor beyond those that the parent promised.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    check(result)
}

/// Takes ownership of a descriptor that came from outside: inherited at start, or in a message.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just given us this number and no other object of the process holds it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes a capability from the bounding set. The first one that the kernel does not know ends in `EINVAL`.
pub fn drop_bounding_capability(capability: libc::c_ulong) -> io::Result<()> {
    // SAFETY: takes integers only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    check(result.into())
}

/// Empties the ambient capability set.
pub fn clear_ambient_capabilities() -> io::Result<()> {
    // SAFETY: takes integers only.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check(result.into())
}

/// Empties the effective, permitted and inheritable capability sets of the calling thread.
pub fn clear_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: 64 bits in two words.
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: VERSION_3, pid: 0 };
    let nothing = [[0_u32; 3]; 2];
    // SAFETY: both structures have the layout of linux/capability.h and live through the call, which only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, ptr::from_ref(&header), nothing.as_ptr()) };
    check(result)
}

/// Has all threads take memory from one place. The C library would give each thread that allocates its own, with pages and
/// mappings that a process of a few quiet threads does not need.
pub fn share_one_heap() {
    // SAFETY: takes integers only. Where it is refused, all is as before.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Has writes behind the limit of a file's size fail and not end the process.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: no handler is installed that could run.
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Maps the first `bytes` bytes of a file, to be written, until the process ends.
pub fn map_file(file: BorrowedFd<'_>, bytes: usize) -> io::Result<&'static [AtomicU8]> {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has that many bytes and is never unmapped. Others may write to the file, so it is seen as atomic bytes,
    // of which any value is one.
    Ok(unsafe { std::slice::from_raw_parts(start.cast_const().cast(), bytes) })
}

/// Whether a part of what [`map_file`] gave can be written: where the host has no memory for it, writing would end the process.
pub fn can_be_written(part: &[AtomicU8]) -> bool {
    const PAGE: usize = 4096;
    let into_page = part.as_ptr().addr() % PAGE;
    let start = part.as_ptr().wrapping_sub(into_page).cast_mut().cast();
    // SAFETY: as if each page of the part were written with what it holds. The mapping begins at a page.
    let result = unsafe { libc::madvise(start, part.len() + into_page, libc::MADV_POPULATE_WRITE) };
    // A kernel before 5.14 cannot tell.
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `KVM_INTERNAL_ERROR_*` of the exit that `vcpu` has just had.
pub fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: a union of plain integers, of which any bytes are valid; the exit's handler reads the right member.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

thread_local! {
    /// The vCPU that runs on this thread, for [`on_kick`].
    static RUNNING: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// The first real-time signal that the C library leaves to programs.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes `KVM_RUN` return at once, also if the thread is just about to call it.
extern "C" fn on_kick(_signal: libc::c_int) {
    let run = RUNNING.get();
    if !run.is_null() {
        // SAFETY: `allow_kicks` stored it for this thread, whose vCPU stays mapped until `forbid_kicks`.
        let flag = unsafe { &raw mut (*run).immediate_exit };
        // SAFETY: as above; one byte, which the kernel reads when the thread enters `KVM_RUN`.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler of the kick signal. Once per process.
pub fn prepare_kicks() -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_kick as *const () as libc::sighandler_t;
    // SAFETY: the handler only touches a thread-local cell and the page behind it: both are async-signal-safe.
    let result = unsafe { libc::sigaction(kick_signal(), &action, ptr::null_mut()) };
    check(result.into())
}

/// Lets [`kick`] bring `vcpu` back on the calling thread, until [`forbid_kicks`].
pub fn allow_kicks(vcpu: &mut VcpuFd) {
    RUNNING.set(ptr::from_mut(vcpu.get_kvm_run()));
}

/// Must be called before the vCPU that runs on this thread is dropped.
pub fn forbid_kicks() {
    RUNNING.set(ptr::null_mut());
}

/// Brings the vCPU of `thread` back from the guest.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle is not joined yet, so the thread's id is valid even if it has ended.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}

/// Ends the process at once: no destructors, no waiting. The kernel takes the VM down after the parent was told.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return, and nothing of this process needs to be flushed: files are written unbuffered.
    unsafe { libc::_exit(code) }
}
