#![allow(unsafe_code)]
//! System calls on guest memory: the only unsafe code of the devices.
//!
//! Guest memory may change at any time under our hands, so no Rust reference to it is ever made: the kernel gets raw
//! addresses. What makes that sound is one invariant, named in each SAFETY comment: a [`VolatileSlice`] stands for mapped
//! memory that outlives it, checked by `vm-memory` when [`super::ring`] made it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use super::buffers::Buffers;
use super::ring::MAX_BUFFERS;

/// Reads from `fd` into guest memory. May read less than there is room for.
pub fn readv(fd: BorrowedFd<'_>, into: &Buffers<'_>) -> io::Result<usize> {
    let list = io_vector(into);
    retry(|| {
        // SAFETY: the list points to mapped guest memory for as long as `into` lives, see the head of this file.
        unsafe { libc::readv(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int) }
    })
}

/// Writes guest memory to `fd`. May write less than given.
pub fn writev(fd: BorrowedFd<'_>, from: &Buffers<'_>) -> io::Result<usize> {
    let list = io_vector(from);
    retry(|| {
        // SAFETY: the list points to mapped guest memory for as long as `from` lives, see the head of this file.
        unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int) }
    })
}

/// Writes a header of ours and then guest memory to `fd`, which takes them as one frame. Frames of more
/// pieces than one call takes are refused: they would lose their end.
pub fn write_frame(fd: BorrowedFd<'_>, header: &[u8], frame: &Buffers<'_>) -> io::Result<usize> {
    if frame.slices().len() >= MAX_BUFFERS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let header = libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() };
    let list: Vec<_> = std::iter::once(header).chain(frame.slices().iter().map(io_entry)).collect();
    retry(|| {
        // SAFETY: the list points to `header`, which the call only reads, and to mapped guest memory for as
        // long as `frame` lives, see the head of this file.
        unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int) }
    })
}

/// Reads from `fd` at `offset` into guest memory. May read less than there is room for; 0 is the end of the file.
pub fn preadv(fd: BorrowedFd<'_>, into: &Buffers<'_>, offset: u64) -> io::Result<usize> {
    let list = io_vector(into);
    retry(|| {
        // SAFETY: the list points to mapped guest memory for as long as `into` lives, see the head of this file.
        unsafe {
            libc::preadv(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int, offset as libc::off_t)
        }
    })
}

/// Writes guest memory to `fd` at `offset`. May write less than given.
pub fn pwritev(fd: BorrowedFd<'_>, from: &Buffers<'_>, offset: u64) -> io::Result<usize> {
    let list = io_vector(from);
    retry(|| {
        // SAFETY: the list points to mapped guest memory for as long as `from` lives, see the head of this file.
        unsafe {
            libc::pwritev(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int, offset as libc::off_t)
        }
    })
}

/// Fills guest memory with random bytes. May fill less.
pub fn random(into: &VolatileSlice<'_>) -> io::Result<usize> {
    let target = into.ptr_guard_mut();
    retry(|| {
        // SAFETY: the pointer and length are those of a slice of mapped guest memory, see the head of this file.
        unsafe { libc::getrandom(target.as_ptr().cast(), target.len(), 0) }
    })
}

/// Gives the whole pages of guest memory in `range` back to the host; from then on they read as zeroes, or in
/// a clone as its template's. Returns their size in bytes.
pub fn drop_pages(range: &VolatileSlice<'_>) -> io::Result<usize> {
    const PAGE: usize = 4096;
    let memory = range.ptr_guard_mut();
    let skipped = memory.as_ptr().align_offset(PAGE);
    let length = memory.len().saturating_sub(skipped) / PAGE * PAGE;
    if length == 0 {
        return Ok(0);
    }
    let start = memory.as_ptr().wrapping_add(skipped).cast();
    retry(|| {
        // SAFETY: the pages lie within a slice of mapped guest memory, see the head of this file, and nothing but the
        // guest relies on what is in them.
        unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) as libc::ssize_t }
    })?;
    Ok(length)
}

fn io_vector(buffers: &Buffers<'_>) -> Vec<libc::iovec> {
    buffers.slices().iter().take(MAX_BUFFERS).map(io_entry).collect()
}

fn io_entry(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}

/// Calls again when a signal came between. A negative result is an error in `errno`.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    fn pieces<'m>(memory: &'m mut [u8], cut: usize) -> Buffers<'m> {
        let (first, second) = VolatileSlice::from(memory).split_at(cut).unwrap();
        let mut buffers = Buffers::default();
        buffers.push(first);
        buffers.push(second);
        buffers
    }

    #[test]
    fn vectored_calls_move_all_pieces() {
        let mut file = tempfile::tempfile().unwrap();
        let mut memory = *b"hello world";
        assert_eq!(pwritev(file.as_fd(), &pieces(&mut memory, 5), 3).unwrap(), 11);
        assert_eq!(writev(file.as_fd(), &pieces(&mut memory[..3], 1)).unwrap(), 3);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "helhello world");

        let mut back = [0; 20];
        assert_eq!(preadv(file.as_fd(), &pieces(&mut back, 2), 3).unwrap(), 11);
        assert_eq!(&back[..11], b"hello world");
        file.rewind().unwrap();
        file.write_all(b"X").unwrap();
        assert_eq!(readv(file.as_fd(), &pieces(&mut back, 7)).unwrap(), 13);
        assert_eq!(&back[..4], b"elhe");
    }

    #[test]
    fn frame_is_its_header_and_all_pieces_or_refused() {
        let mut file = tempfile::tempfile().unwrap();
        let mut memory = *b"frame";
        assert_eq!(write_frame(file.as_fd(), b"header ", &pieces(&mut memory, 2)).unwrap(), 12);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "header frame");

        let mut bytes = [0; MAX_BUFFERS];
        let whole = VolatileSlice::from(&mut bytes[..]);
        let mut crumbs = Buffers::default();
        (0..MAX_BUFFERS).for_each(|at| crumbs.push(whole.subslice(at, 1).unwrap()));
        let refused = write_frame(file.as_fd(), b"header ", &crumbs).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn random_fills_with_something() {
        let mut memory = [0; 64];
        assert_eq!(random(&VolatileSlice::from(&mut memory[..])).unwrap(), 64);
        assert_ne!(memory, [0; 64]);
    }
}
