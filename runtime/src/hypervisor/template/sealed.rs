//! The two files of a template, memory and state: in memory, without a name, and sealed once they are written.
//!
//! Used by `build`, which fills them, and `holder`, which keeps them. After sealing nobody can change them any more, whoever
//! holds which descriptor: clones of many pods read them.

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Size and content stay as they are, and so do the seals.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE)
    .union(SealFlag::F_SEAL_SEAL);

/// A new file of that length, to be filled; holes cost nothing. `name` is for people who look at a process's descriptors.
pub fn new_file(name: &str, bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// A file that nobody can change, open for reading only.
#[derive(Debug)]
pub struct Sealed(File);

impl Sealed {
    /// Seals a file.
    ///
    /// # Errors
    /// EBUSY where somebody still maps it for writing.
    pub fn seal(file: File) -> io::Result<Self> {
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
        Self::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
    }

    /// The file behind a process's descriptor.
    ///
    /// # Errors
    /// Where it is not sealed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let seals = SealFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        match seals.contains(SEALS) {
            true => Ok(Self(file)),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not sealed")),
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.size())
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> io::Result<u64> {
        // stat(2) counts blocks of 512 bytes, whatever the file system's are.
        Ok(self.0.metadata()?.blocks() * 512)
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};

    #[test]
    fn sealed_file_is_read_and_never_changed() {
        let mut file = new_file("test", 8192).unwrap();
        file.write_all(b"state").unwrap();
        let mut writable = file.try_clone().unwrap();
        let mut sealed = Sealed::seal(file).unwrap();
        assert!(writable.write_all(b"x").is_err());
        assert!(writable.set_len(1).is_err() && writable.set_len(10_000).is_err());
        let mut text = [0; 5];
        sealed.0.seek(SeekFrom::Start(0)).unwrap();
        sealed.0.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"state");
        assert!(sealed.0.write_all(b"x").is_err());
        assert_eq!(sealed.len().unwrap(), 8192);
        assert_eq!(sealed.memory_bytes().unwrap(), 4096);
    }

    #[test]
    fn file_without_all_seals_is_not_taken() {
        let file = new_file("test", 1).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert!(Sealed::open(Path::new(&path)).is_err());
        assert!(Sealed::open(Path::new("/dev/null")).is_err());
    }
}
