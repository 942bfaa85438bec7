//! PID 1 inherits every orphan of the guest and must collect it; the ends of those that somebody waits for
//! are kept.
//!
//! A process that matters is registered with the [`Reaper`] before it can be collected:
//!
//! - A direct child is spawned and registered under the lock under which children are collected.
//! - A process made by a one-shot child stays that child's own until the agent has registered it: only then
//!   does the one-shot child end, and the kernel hands its children over.
//!
//! Nothing else in the agent may wait for a process, and [`std::process::Child::wait`] is never called.

use crate::clock;
use crate::lock::locked;
use crate::sys;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Wall clock when it was collected, nanoseconds since the epoch.
    pub at_ns: i64,
}

/// A process that somebody waits for. Holds its pidfd, so that neither a signal nor a namespace lookup can
/// reach another process that was given its number later.
#[derive(Debug, Clone)]
pub struct ProcessHandle {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    ended: watch::Receiver<Option<Ended>>,
}

impl ProcessHandle {
    /// Its process id in the guest's own pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its end; at once if it has ended.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|end| *end) {
            Ok(Some(end)) => end,
            // The table drops a sender only after its message, so this cannot be reached while the agent
            // runs.
            _ => std::future::pending().await,
        }
    }

    /// Whether it has been collected.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Sends a signal. A process that has ended is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match sys::process::pidfd_send_signal(self.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The processes that somebody waits for. A clone is another handle of the same table.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    table: Arc<Mutex<WaitTable>>,
}

impl Reaper {
    fn table(&self) -> MutexGuard<'_, WaitTable> {
        locked(&self.table)
    }

    /// Starts a child and registers it.
    pub fn spawn(&self, command: &mut Command) -> io::Result<ProcessHandle> {
        let mut table = self.table();
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).expect("the kernel's process ids fit an i32");
        table.add(pid)
    }

    /// Registers a process that is not yet the agent's: the child of a child that waits for this call.
    pub fn register(&self, pid: i32) -> io::Result<ProcessHandle> {
        self.table().add(pid)
    }

    /// Collects all that have ended.
    fn collect(&self) {
        let mut table = self.table();
        while let Some((pid, status)) = sys::process::collect_any_child() {
            table.record(pid, Ended { code: exit_code(status), at_ns: clock::now_ns() });
        }
    }
}

/// Processes that have not been collected, by id.
#[derive(Debug, Default)]
struct WaitTable {
    waited_for: HashMap<i32, watch::Sender<Option<Ended>>>,
}

impl WaitTable {
    fn add(&mut self, pid: i32) -> io::Result<ProcessHandle> {
        let pidfd = Arc::new(sys::process::pidfd_open(pid)?);
        let (sender, ended) = watch::channel(None);
        self.waited_for.insert(pid, sender);
        Ok(ProcessHandle { pid, pidfd, ended })
    }

    /// Notes an end. Orphans that nobody waits for are forgotten.
    fn record(&mut self, pid: i32, end: Ended) {
        if let Some(sender) = self.waited_for.remove(&pid) {
            // The value stays readable after the sender, for those who ask later.
            sender.send_replace(Some(end));
        }
    }
}

/// The code that the CRI shows: the process's own, or 128 + the signal that ended it.
fn exit_code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        // Stopped and continued children are not asked for.
        (None, None) => 255,
    }
}

/// Begins to collect children that have ended.
pub fn start(reaper: Reaper) -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        loop {
            // One signal may stand for many ends, and some may have come before the first.
            reaper.collect();
            if ended.recv().await.is_none() {
                return;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(code: i32) -> Ended {
        Ended { code, at_ns: 1 }
    }

    fn own_pid() -> i32 {
        std::process::id() as i32
    }

    #[test]
    fn exit_codes_follow_the_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGKILL)), 137);
        // A core dump sets bit 7; real-time signals have no name in most tables.
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGSEGV | 0x80)), 139);
        assert_eq!(exit_code(ExitStatus::from_raw(37)), 165);
    }

    #[tokio::test]
    async fn end_before_the_wait_is_kept() {
        let mut table = WaitTable::default();
        let child = table.add(own_pid()).unwrap();
        assert!(!child.has_ended());
        table.record(own_pid(), end(7));
        assert!(child.has_ended());
        assert_eq!(child.ended().await, end(7));
        assert_eq!(child.clone().ended().await, end(7));
    }

    #[tokio::test]
    async fn every_waiter_is_answered() {
        let mut table = WaitTable::default();
        let child = table.add(own_pid()).unwrap();
        let waits: Vec<_> =
            (0..3).map(|_| child.clone()).map(|c| tokio::spawn(async move { c.ended().await })).collect();
        tokio::task::yield_now().await;
        table.record(own_pid(), end(0));
        for wait in waits {
            assert_eq!(wait.await.unwrap(), end(0));
        }
    }

    #[test]
    fn orphans_leave_nothing_in_the_table() {
        let mut table = WaitTable::default();
        table.record(4711, end(0));
        assert!(table.waited_for.is_empty());
    }

    #[test]
    fn number_used_again_is_a_new_process() {
        let mut table = WaitTable::default();
        let first = table.add(own_pid()).unwrap();
        table.record(own_pid(), end(1));
        let second = table.add(own_pid()).unwrap();
        assert!(first.has_ended() && !second.has_ended());
    }
}
