//! Directories that others may change at any time, by descriptors: an entry is what it is when it is opened,
//! and no link is followed.
//!
//! Used by whoever walks through or deletes what containers have made. It opens one name at a time and must
//! not be given paths of a container's.

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::path::Arg;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

/// Opens the directory of this name in another one. What is no directory fails, also a link to one.
pub fn open(at: impl AsFd, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// The name of any entry of a wanted type. The list of a directory may call the type unknown.
pub fn any_entry(
    directory: impl AsFd,
    is_wanted: impl Fn(FileType) -> bool,
) -> rustix::io::Result<Option<CString>> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if is_wanted(entry.file_type()) && !is_dots(entry.file_name()) {
            return Ok(Some(entry.file_name().to_owned()));
        }
    }
    Ok(None)
}

/// Whether a directory lists itself or its parent by this name.
pub fn is_dots(name: &CStr) -> bool {
    name == c"." || name == c".."
}
