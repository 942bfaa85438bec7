//! The process of a VMM, or of a template's holder, by its descriptor: started, found again, watched, killed, reaped. No
//! number is ever signalled that may have become another process's.
//!
//! Used by `vm` and `template`. It must not know what the process is for.

use super::HypervisorError;
use super::sys::{self, Program};
use crate::oom_score;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
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
    /// Its `oom_score_adj`, from its first instructions on.
    pub oom_score: i32,
}

impl Process {
    /// Starts a process; its standard input and output are nothing. A caller that leaves before the answer
    /// leaves no process behind.
    pub async fn start(start: &Start<'_>) -> Result<Self, HypervisorError> {
        let failed = |source| HypervisorError::Spawn { path: start.program.to_owned(), source };
        let program = program_of(start).map_err(failed)?;
        // On a thread that serves no tasks: it sleeps until a child in the pod's cgroup has got to its exec,
        // so a pod that hardly gets a processor would stop the service of all others.
        let started = tokio::task::spawn_blocking(move || sys::spawn(&program)).await;
        let started = started.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)?;
        let pid = started.pid;
        // A child that was not reaped keeps its number.
        oom_score::set(pid, start.oom_score, || true);
        Self::new(pid, started.into_pidfd()).map_err(|error| {
            // This hits no other process either.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            failed(error)
        })
    }

    /// The process of that number and start; `None` where it has ended.
    pub fn adopt(pid: i32, started_at_ticks: u64) -> io::Result<Option<Self>> {
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

fn program_of(start: &Start<'_>) -> io::Result<Program> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let mut descriptors = vec![null.as_fd(), null.as_fd(), start.log];
    descriptors.extend(start.descriptors);
    Ok(Program {
        path: CString::new(start.program.as_os_str().as_bytes())?,
        arguments: start.words.iter().map(|word| CString::new(*word)).collect::<Result<_, _>>()?,
        descriptors: sys::above_targets(&descriptors)?,
        cgroup: start.cgroup.map(open_directory).transpose()?,
    })
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
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
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;
    use std::time::Duration;
    use tokio::time::{sleep, timeout};

    /// `asm-generic/fcntl.h`; the libc crate does not have it.
    const F_SETSIG: i32 = 10;

    /// Much longer than anything here takes that does not hang.
    const LONG: Duration = Duration::from_secs(20);

    async fn sleeper(program: &Path, descriptors: &[BorrowedFd<'_>]) -> Process {
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let words = ["sleep", "1000"];
        let oom_score = oom_score::FIRST;
        let start = Start { program, words: &words, log: null.as_fd(), descriptors, cgroup: None, oom_score };
        Process::start(&start).await.unwrap()
    }

    /// A program whose exec takes until this is let go: the kernel asks whoever has a lease on a file before
    /// it lets another process open it, as for an exec.
    struct Slow {
        lease: File,
        path: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Slow {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("sleep");
            fs::copy("/usr/bin/sleep", &path).unwrap();
            let slow = Self { lease: File::open(&path).unwrap(), path, _directory: directory };
            // By default the kernel asks with SIGIO, which ends a process.
            slow.set(F_SETSIG, libc::SIGURG).unwrap();
            let granted = async {
                // A process that another test starts at this moment still has the copy open for writing.
                while slow.set(libc::F_SETLEASE, libc::F_WRLCK).is_err() {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(LONG, granted).await.unwrap();
            slow
        }

        #[allow(unsafe_code)]
        fn set(&self, command: i32, value: i32) -> io::Result<()> {
            // SAFETY: these commands of fcntl take an integer.
            match unsafe { libc::fcntl(self.lease.as_raw_fd(), command, value) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }

        fn let_go(&self) {
            self.set(libc::F_SETLEASE, libc::F_UNLCK).unwrap();
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn start_that_takes_its_time_holds_no_other_task_up() {
        const TICKS: u32 = 50;
        let slow = Slow::new().await;
        let ticker = async {
            for _ in 0..TICKS {
                sleep(Duration::from_millis(2)).await;
            }
            // Only the ticks let the start go on: on one thread with it they would never come.
            slow.let_go();
        };
        let (process, ()) =
            timeout(LONG, async { tokio::join!(sleeper(&slow.path, &[]), ticker) }).await.unwrap();
        process.kill().await;
    }

    #[tokio::test]
    async fn start_whose_caller_leaves_leaves_no_process() {
        let slow = Slow::new().await;
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let theirs = OwnedFd::from(theirs);
        let started = timeout(Duration::from_millis(50), sleeper(&slow.path, &[theirs.as_fd()])).await;
        assert!(started.is_err(), "it did not wait");
        drop(theirs);
        slow.let_go();
        // The pipe ends with the process that has its other end.
        let ended = tokio::task::spawn_blocking(move || ours.read(&mut [0]).unwrap());
        assert_eq!(timeout(LONG, ended).await.expect("the process lives on").unwrap(), 0);
    }

    #[tokio::test]
    async fn process_has_the_score_that_it_was_given() {
        let process = sleeper(Path::new("/usr/bin/sleep"), &[]).await;
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", process.pid)).unwrap();
        assert_eq!(score.trim(), "1000");
        process.kill().await;
    }

    #[tokio::test]
    async fn killed_process_has_ended_and_is_not_found_again() {
        let process = sleeper(Path::new("/usr/bin/sleep"), &[]).await;
        let found = Process::adopt(process.pid, process.started_at_ticks).unwrap();
        assert!(found.is_some());
        assert!(Process::adopt(process.pid, process.started_at_ticks + 1).unwrap().is_none());
        process.kill().await;
        process.kill().await;
        found.unwrap().ended().await;
        assert!(Process::adopt(process.pid, process.started_at_ticks).unwrap().is_none());
    }
}
