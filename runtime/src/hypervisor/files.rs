//! What a VMM is given at its start: files that are opened for it, and the sockets in its VM's directory.
//!
//! Used by `local` and `template`: a VMM opens nothing by path, so all that it uses is opened here.

use super::{HypervisorError, control};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Names in a VM's directory.
pub const CONTROL: &str = "control.sock";
/// See [`CONTROL`].
pub const VSOCK: &str = "vsock.sock";
/// See [`CONTROL`].
pub const LOG: &str = "vmm.log";

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

/// The log in `directory`, to be appended to.
pub fn log(directory: &Path) -> Result<File, HypervisorError> {
    open(OpenOptions::new().append(true).create(true), "vmm log", &directory.join(LOG))
}

fn open(how: &OpenOptions, what: &'static str, path: &Path) -> Result<File, HypervisorError> {
    how.open(path).map_err(|source| HypervisorError::File { what, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_a_vmm_that_failed_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        drop(Sockets::bind(directory.path()).unwrap());
        drop(Sockets::bind(directory.path()).unwrap());
    }
}
