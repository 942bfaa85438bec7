//! The process of a VMM, or of a template's holder, by its descriptor: started, found again, watched, killed, reaped. No
//! number is ever signalled that may have become another process's.
//!
//! Used by `vm` and `template`. It must not know what the process is for.

use super::HypervisorError;
use super::sys::{self, Program};
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
use std::path::Path;
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

/// What a new process is given.
pub struct Start<'a> {
    /// Its program.
    pub program: &'a Path,
    /// Its arguments, the name first.
    pub words: &'a [&'a str],
    /// Its standard error.
    pub log: BorrowedFd<'a>,
    /// What it finds at descriptor 3 and above.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// The cgroup it is born in.
    pub cgroup: Option<&'a Path>,
}

impl Process {
    /// Starts a process; its standard input and output are nothing.
    pub fn start(start: &Start<'_>) -> Result<Self, HypervisorError> {
        let failed = |source| HypervisorError::Spawn { path: start.program.to_owned(), source };
        let nul = |_| failed(io::ErrorKind::InvalidInput.into());
        let path = CString::new(start.program.as_os_str().as_bytes()).map_err(nul)?;
        let arguments = start.words.iter().map(|word| CString::new(*word)).collect::<Result<Vec<_>, _>>();
        let arguments = arguments.map_err(nul)?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
        let cgroup = start.cgroup.map(open_directory).transpose().map_err(failed)?;
        let mut descriptors = vec![null.as_fd(), null.as_fd(), start.log];
        descriptors.extend(start.descriptors);
        let started = sys::spawn(&Program {
            path: &path,
            arguments: &arguments,
            descriptors: &descriptors,
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
        Ok(Self::open(pid)?.filter(|process| process.started_at_ticks == started_at_ticks))
    }

    /// The process that has that number now; `None` where there is none. Signals reach it and never a later
    /// one of that number, so a caller can look once more whether it is the one that is meant.
    pub fn open(pid: i32) -> io::Result<Option<Self>> {
        let pidfd = match sys::pidfd_open(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            other => other?,
        };
        // Looked at after the descriptor was taken: whatever has this number now is what the descriptor names.
        match Self::new(pid, pidfd) {
            Ok(process) => Ok(Some(process)),
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
            Err(error) => tracing::error!(pid = self.pid, %error, "process cannot be killed"),
        }
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
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

    fn sleeper() -> Process {
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let (program, words) = (Path::new("/usr/bin/sleep"), ["sleep", "1000"]);
        let start = Start { program, words: &words, log: null.as_fd(), descriptors: &[], cgroup: None };
        Process::start(&start).unwrap()
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
