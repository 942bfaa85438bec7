//! A VMM's process, by its descriptor: started, found again, watched, killed, reaped. No number is ever signalled that
//! may have become another process's.

use super::sys::{self, Program};
use super::{HypervisorError, VmConfig};
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process.
pub struct Process {
    /// Its number: for people and records.
    pub pid: i32,
    /// When it began, in clock ticks since boot.
    pub started_at_ticks: u64,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts the VMM of `config` in its cgroup, with `control` as its control socket and `log` as its standard error.
    pub fn start_vmm(
        config: &VmConfig,
        control: BorrowedFd<'_>,
        log: BorrowedFd<'_>,
    ) -> Result<Self, HypervisorError> {
        let failed = |source| HypervisorError::Spawn { path: config.vmm.clone(), source };
        let nul = |_| failed(io::ErrorKind::InvalidInput.into());
        let path = CString::new(config.vmm.as_os_str().as_bytes()).map_err(nul)?;
        let id = config.uid.to_string();
        let words = ["isopod-vmm", "--uid", &id, "--gid", &id];
        let arguments = words.map(|word| CString::new(word).expect("digits and letters hold no zero byte"));
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
        let cgroup = match &config.cgroup {
            Some(path) => Some(open_directory(path).map_err(failed)?),
            None => None,
        };
        let started = sys::spawn(&Program {
            path: &path,
            arguments: &arguments,
            descriptors: [null.as_fd(), null.as_fd(), log, control],
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        });
        let started = started.map_err(failed)?;
        Self::new(started.pid, started.pidfd).map_err(|error| {
            // A child that was not reaped keeps its number, so this hits no other process.
            let _ = kill(Pid::from_raw(started.pid), Signal::SIGKILL);
            failed(error)
        })
    }

    /// The process of that number and start; `None` where it has ended.
    pub fn find(pid: i32, started_at_ticks: u64) -> io::Result<Option<Self>> {
        let pidfd = match sys::pidfd_open(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            other => other?,
        };
        // Looked at after the descriptor was taken: whatever has this number now is what the descriptor names.
        match Self::new(pid, pidfd) {
            Ok(process) if process.started_at_ticks == started_at_ticks => Ok(Some(process)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new(pid: i32, pidfd: OwnedFd) -> io::Result<Self> {
        let started_at_ticks = start_time(pid)?;
        let pidfd = sys::awaitable(pidfd, Interest::READABLE)?;
        Ok(Self { pid, started_at_ticks, pidfd })
    }

    /// Waits for its end, and reaps it where it is a child.
    pub async fn ended(&self) {
        // The readiness is never cleared: a process ends once. An error means that tokio itself is going down.
        let _ = self.pidfd.readable().await;
        let _ = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }

    /// Kills it and waits for its end.
    pub async fn kill(&self) {
        match sys::pidfd_kill(self.pidfd.as_fd()) {
            Ok(()) => self.ended().await,
            Err(error) => tracing::error!(pid = self.pid, %error, "vmm cannot be killed"),
        }
    }
}

fn open_directory(path: &std::path::Path) -> io::Result<File> {
    Ok(open(path, OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// Field 22 of `/proc/PID/stat` (proc(5)). The second field is the program's name in parentheses, which may hold any
/// character.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    fields
        .and_then(|mut fields| fields.nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the process's stat cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    fn sleeper() -> Process {
        let config = VmConfig {
            id: "v".into(),
            directory: PathBuf::new(),
            cgroup: None,
            uid: 1,
            // Any program that lives until it is killed, whatever its arguments.
            vmm: Path::new("/usr/bin/yes").into(),
            kernel: PathBuf::new(),
            root_image: PathBuf::new(),
            vcpus: 1,
            memory_mib: 64,
            huge_pages: false,
            kernel_args: vec![],
            boot_timeout: Duration::from_secs(1),
        };
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        Process::start_vmm(&config, null.as_fd(), null.as_fd()).unwrap()
    }

    #[tokio::test]
    async fn killed_process_has_ended_and_is_not_found_again() {
        let process = sleeper();
        let found = Process::find(process.pid, process.started_at_ticks).unwrap();
        assert!(found.is_some());
        assert!(Process::find(process.pid, process.started_at_ticks + 1).unwrap().is_none());
        process.kill().await;
        process.kill().await;
        found.unwrap().ended().await;
        assert!(Process::find(process.pid, process.started_at_ticks).unwrap().is_none());
    }
}
