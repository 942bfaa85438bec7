//! What a VMM is given at its start: files that are opened for it, and the sockets and the log in its VM's directory.
//!
//! Used by `local`, `vm` and `template`: a VMM opens nothing by path, so all that it uses is opened here. The
//! log has a fixed size, which no VMM can change, and only its end is ever read.

use super::{HypervisorError, control};
use isopod_protocols::vmm::LOG_BYTES;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Names in a VM's directory.
pub const CONTROL: &str = "control.sock";
/// See [`CONTROL`].
pub const VSOCK: &str = "vsock.sock";
/// See [`CONTROL`].
const LOG: &str = "vmm.log";

/// Most bytes that are taken of the end of a VMM's log.
const LOG_TAIL: usize = 4096;

/// The files that VMs of one configuration share.
pub struct Files {
    /// `/dev/kvm`.
    pub kvm: File,
    /// The guest's kernel.
    pub kernel: File,
    /// The guest's root.
    pub root_image: File,
}

impl Files {
    /// Opens them.
    pub fn open(kernel: &Path, root_image: &Path) -> Result<Self, HypervisorError> {
        let mut read = OpenOptions::new();
        read.read(true);
        Ok(Self {
            kvm: open(OpenOptions::new().read(true).write(true), "kvm device", Path::new("/dev/kvm"))?,
            kernel: open(&read, "guest kernel", kernel)?,
            root_image: open(&read, "guest root", root_image)?,
        })
    }
}

/// The sockets and the log of one VM.
pub struct Sockets {
    /// Where the host's connections to the guest arrive.
    pub vsock: UnixListener,
    /// Where requests to the VMM arrive.
    pub control: OwnedFd,
    /// What the VMM says.
    pub log: File,
}

impl Sockets {
    /// Makes them in `directory`, in place of those of a VMM that ended before it ran a guest; its log is continued.
    pub fn bind(directory: &Path) -> Result<Self, HypervisorError> {
        let failed = |what, path: PathBuf| move |source| HypervisorError::File { what, path, source };
        let (vsock, control) = (directory.join(VSOCK), directory.join(CONTROL));
        for path in [&vsock, &control] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("socket of an earlier vmm", path.clone())(error));
                }
                _ => {}
            }
        }
        Ok(Self {
            vsock: UnixListener::bind(&vsock).map_err(failed("vsock socket", vsock))?,
            control: control::listener(&control).map_err(failed("control socket", control))?,
            log: log(directory)?,
        })
    }
}

/// The log in `directory`, of the size that a VMM expects. What an earlier VMM wrote stays.
pub fn log(directory: &Path) -> Result<File, HypervisorError> {
    let path = directory.join(LOG);
    let mut how = OpenOptions::new();
    let log = open(how.read(true).write(true).create(true).truncate(false).mode(0o600), "vmm log", &path)?;
    log.set_len(LOG_BYTES).map_err(|source| HypervisorError::File {
        what: "size of vmm log",
        path,
        source,
    })?;
    Ok(log)
}

/// The end of the log in `directory`, or why it cannot be read. However long a VMM may have made its log, little of it is looked at.
pub fn log_tail(directory: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut log = File::open(directory.join(LOG))?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
        let mut text = Vec::new();
        log.take(LOG_BYTES).read_to_end(&mut text)?;
        // What no VMM has written is zeroes.
        text.truncate(text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(text.split_off(text.len().saturating_sub(LOG_TAIL)))
    };
    match read() {
        Ok(tail) => String::from_utf8_lossy(&tail).into_owned(),
        Err(error) => format!("(no log: {error})"),
    }
}

fn open(how: &OpenOptions, what: &'static str, path: &Path) -> Result<File, HypervisorError> {
    how.open(path).map_err(|source| HypervisorError::File { what, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_has_its_size_and_keeps_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG);
        for text in ["one\n", "two\n"] {
            let file = log(directory.path()).unwrap();
            assert_eq!(file.metadata().unwrap().len(), LOG_BYTES);
            let written = fs::read(&path).unwrap().iter().position(|byte| *byte == 0).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), written as u64).unwrap();
        }
        assert_eq!(log_tail(directory.path()), "one\ntwo\n");
    }

    #[test]
    fn of_a_log_that_a_vmm_has_filled_only_the_end_is_read() {
        let directory = tempfile::tempdir().unwrap();
        assert!(log_tail(directory.path()).starts_with("(no log: "));
        let file = log(directory.path()).unwrap();
        file.set_len(1 << 34).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[b'x'; 10_000], (1 << 34) - 10_000).unwrap();
        assert_eq!(log_tail(directory.path()), "x".repeat(LOG_TAIL));
    }

    #[test]
    fn sockets_of_a_vmm_that_failed_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        drop(Sockets::bind(directory.path()).unwrap());
        drop(Sockets::bind(directory.path()).unwrap());
    }
}
