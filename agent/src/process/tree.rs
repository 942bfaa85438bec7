//! Kills a process and its descendants, and nothing else.
//!
//! An exec lives in its container's cgroup, so what belongs to it is found by parenthood. Every process is
//! stopped before its children are listed, so that it makes no more of them. The lists are taken again until
//! they hold nothing new: a fork that has begun is finished before its process stops. A process whose parent
//! has ended was given to the container's first process: it belongs to the container and is not found.
//!
//! Called where an exec exceeds its limit (`container/processes.rs`) and where a launch fails. Blocks: call it
//! off the event loop. It must not hit a process that was given the number of another one: every process is held
//! by a pidfd, and what was read about a number counts only if the pidfd's process exists afterwards.

use crate::sys;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest search. Whatever has been found by then is killed.
const DEADLINE: Duration = Duration::from_secs(5);

/// Most processes of one tree, as each takes a descriptor. A guest has no more numbers than that, unless
/// `kernel.pid_max` is raised.
const MAX_PROCESSES: usize = 1 << 15;

/// How long stopped processes may take to stand still. One in an uninterruptible wait, as after vfork, may
/// not until that ends.
const SETTLE: Duration = Duration::from_millis(100);

/// Pause between two looks at a process that is being stopped.
const SETTLE_POLL: Duration = Duration::from_millis(1);

/// A tree that was not killed whole.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call or file of one of its processes.
    #[error("process {pid} below process {root} cannot be {action}; what is left ends with its container")]
    System {
        /// The process that was to be killed with its descendants.
        root: i32,
        /// The process that failed.
        pid: i32,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Processes that fork faster than they are stopped.
    #[error(
        "process {root} forks faster than it is stopped ({found} are); what is left ends with its container"
    )]
    Growing {
        /// The process that was to be killed with its descendants.
        root: i32,
        /// How many were stopped and killed.
        found: usize,
    },
}

/// Kills the process that `pidfd` names, and all of its descendants. One that has ended has none and
/// succeeds.
///
/// # Errors
/// Where some may be left. Those that were found have been killed nevertheless.
pub fn kill(pid: i32, pidfd: BorrowedFd<'_>) -> Result<(), TreeError> {
    let held = pidfd.try_clone_to_owned().map_err(|source| {
        // At least it; whether it has ended already makes no difference.
        let _ = sys::process::pidfd_send_signal(pidfd, libc::SIGKILL);
        TreeError::System { root: pid, pid, action: "held", source }
    });
    let pidfd = held?;
    let mut tree = Tree { members: Vec::new(), index: HashMap::new() };
    let stopped = tree.stop(Member { pid, pidfd }).and_then(|()| tree.stop_descendants());
    // In any case, or they would stay stopped for ever.
    stopped.and(tree.kill())
}

/// One process of the tree.
struct Member {
    pid: i32,
    pidfd: OwnedFd,
}

impl Member {
    /// Whether it has not been collected, so that its number is its own.
    fn exists(&self) -> bool {
        sys::process::pidfd_send_signal(self.pidfd.as_fd(), 0).is_ok()
    }

    /// Sends a signal. A process that has ended is no error.
    fn signal(&self, signal: i32) -> io::Result<()> {
        gone_is_none(sys::process::pidfd_send_signal(self.pidfd.as_fd(), signal)).map(|_| ())
    }
}

/// Processes that were stopped, parents before their children; the first one is the root.
struct Tree {
    members: Vec<Member>,
    /// Place of a process in `members`.
    index: HashMap<i32, usize>,
}

impl Tree {
    fn failed(&self, pid: i32, action: &'static str) -> impl FnOnce(io::Error) -> TreeError + use<> {
        let root = self.members.first().map_or(pid, |root| root.pid);
        move |source| TreeError::System { root, pid, action, source }
    }

    /// Stops a process and takes it into the tree.
    fn stop(&mut self, member: Member) -> Result<(), TreeError> {
        let pid = member.pid;
        let stopped = member.signal(libc::SIGSTOP).map_err(self.failed(pid, "stopped"));
        // Also where it was not stopped: it is killed with the others.
        self.index.insert(pid, self.members.len());
        self.members.push(member);
        stopped
    }

    /// Stops descendants until a look at processes that all stand still finds no other.
    fn stop_descendants(&mut self) -> Result<(), TreeError> {
        let deadline = Instant::now() + DEADLINE;
        let mut still = 0;
        loop {
            self.settle(still, deadline);
            still = self.members.len();
            let mut next = 0;
            // Those that are found on the way are looked at in the same pass.
            while next < self.members.len() {
                if self.members.len() > MAX_PROCESSES || Instant::now() >= deadline {
                    return Err(TreeError::Growing { root: self.members[0].pid, found: self.members.len() });
                }
                self.stop_children(next)?;
                next += 1;
            }
            if self.members.len() == still {
                return Ok(());
            }
        }
    }

    /// Waits a moment until the processes from place `first` on stand still.
    fn settle(&self, first: usize, deadline: Instant) {
        let limit = deadline.min(Instant::now() + SETTLE);
        for member in &self.members[first..] {
            while moves(member.pid) && member.exists() && Instant::now() < limit {
                std::thread::sleep(SETTLE_POLL);
            }
        }
    }

    /// Stops the children of one process that are not in the tree yet.
    fn stop_children(&mut self, place: usize) -> Result<(), TreeError> {
        let parent = self.members[place].pid;
        let listed = children(parent).map_err(self.failed(parent, "asked for its children"))?;
        for pid in listed {
            if self.index.get(&pid).is_some_and(|known| self.members[*known].exists()) {
                continue;
            }
            let held = absent_is_none(sys::process::pidfd_open(pid)).map_err(self.failed(pid, "held"))?;
            let Some(pidfd) = held else { continue };
            let child = Member { pid, pidfd };
            // Both exist after the look, so that neither number was another process's during it.
            if parent_of(pid) == Some(parent) && child.exists() && self.members[place].exists() {
                self.stop(child)?;
            }
        }
        Ok(())
    }

    /// Kills all, children before their parents: the end of a parent would let stopped children go on, where
    /// it leaves their process group an orphan. Answers the first failure.
    fn kill(&self) -> Result<(), TreeError> {
        let mut result = Ok(());
        for member in self.members.iter().rev() {
            let killed = member.signal(libc::SIGKILL).map_err(self.failed(member.pid, "killed"));
            result = result.and(killed);
        }
        result
    }
}

/// Children of all threads of a process, which should be stopped: the kernel may leave out some while others
/// end.
fn children(pid: i32) -> io::Result<Vec<i32>> {
    let Some(threads) = gone_is_none(fs::read_dir(format!("/proc/{pid}/task")))? else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for thread in threads {
        let Some(thread) = gone_is_none(thread)? else { break };
        match gone_is_none(fs::read_to_string(thread.path().join("children")))? {
            Some(list) => all.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            None if thread.path().join("stat").exists() && !thread.path().join("children").exists() => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "the guest's kernel lacks CONFIG_PROC_CHILDREN",
                ));
            }
            // The thread has ended.
            None => {}
        }
    }
    Ok(all)
}

/// Whether a thread of the process is neither stopped nor ended.
fn moves(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|thread| {
        let stat = stat(&thread.path().join("stat"));
        stat.is_some_and(|stat| !matches!(stat.state, b'T' | b't' | b'Z' | b'X' | b'x'))
    })
}

fn parent_of(pid: i32) -> Option<i32> {
    stat(Path::new(&format!("/proc/{pid}/stat"))).map(|stat| stat.parent)
}

/// What is read of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    parent: i32,
}

fn stat(path: &Path) -> Option<Stat> {
    parse_stat(&fs::read(path).ok()?)
}

/// The process chose its name, which stands in brackets and may hold brackets and blanks itself. What follows
/// the last bracket is the kernel's.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(line.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some(Stat { state, parent: fields.next()?.parse().ok()? })
}

/// None for what belongs to a process or thread that has been collected.
fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// None also where the number has become that of a thread: kernels before 6.9 say EINVAL then, later ones
/// ENOENT.
fn absent_is_none(opened: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        opened => gone_is_none(opened),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    /// Longest wait for something that happens at once.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn pid(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    /// Seconds that no other process of the machine sleeps, by which those of one test are known.
    fn seconds(test: u32) -> String {
        format!("{test}{}", 10_000_000 + std::process::id())
    }

    /// Processes that run `sleep SECONDS`; those that have ended have no command line.
    fn sleepers(seconds: &str) -> Vec<i32> {
        let wanted = format!("sleep\0{seconds}\0").into_bytes();
        let names = fs::read_dir("/proc").unwrap().flatten();
        let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted)).collect()
    }

    #[track_caller]
    fn wait_until(condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < PATIENCE, "it does not come about");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill_child(child: &mut Child) -> Result<(), TreeError> {
        let pidfd = sys::process::pidfd_open(pid(child)).unwrap();
        let killed = kill(pid(child), pidfd.as_fd());
        // A pidfd is readable once its process has ended.
        let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, PollTimeout::from(20_000_u16)).unwrap(), 1, "the root lives");
        child.wait().unwrap();
        killed
    }

    #[test]
    fn descendants_end_in_whatever_session_and_nobody_else() {
        let (theirs, ours) = (seconds(1), seconds(2));
        let mut other = Command::new("sleep").arg(&ours).spawn().unwrap();
        let script = format!(
            "sleep {theirs} & setsid sleep {theirs} & sh -c 'sh -c \"sleep {theirs} & wait\" & wait' & wait"
        );
        let mut root = shell(&script);
        wait_until(|| sleepers(&theirs).len() == 3);
        kill_child(&mut root).unwrap();
        wait_until(|| sleepers(&theirs).is_empty());
        assert_eq!(other.try_wait().unwrap(), None);
        assert_ne!(stat(Path::new(&format!("/proc/{}/stat", other.id()))).unwrap().state, b'T');
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn orphan_of_an_ended_parent_is_spared() {
        let left = seconds(3);
        let mut root = shell(&format!("(sleep {left} >/dev/null & echo $!); echo over; exec sleep {left}9"));
        let mut lines = BufReader::new(root.stdout.take().unwrap()).lines();
        let orphan: i32 = lines.next().unwrap().unwrap().parse().unwrap();
        // Then the shell in between has ended.
        assert_eq!(lines.next().unwrap().unwrap(), "over");
        let orphan = sys::process::pidfd_open(orphan).unwrap();
        wait_until(|| sleepers(&left).len() == 1);
        kill_child(&mut root).unwrap();
        assert_eq!(sleepers(&left).len(), 1, "the orphan was hit");
        sys::process::pidfd_send_signal(orphan.as_fd(), libc::SIGKILL).unwrap();
    }

    #[test]
    fn no_child_that_is_born_meanwhile_escapes() {
        for round in 0..5 {
            let theirs = seconds(40 + round);
            let script =
                format!("i=0; while [ $i -lt 500 ]; do sleep {theirs} & i=$((i+1)); done; echo all; wait");
            let mut root = shell(&script);
            wait_until(|| sleepers(&theirs).len() > 5);
            kill_child(&mut root).unwrap();
            wait_until(|| sleepers(&theirs).is_empty());
        }
    }

    #[test]
    fn ended_process_has_no_descendants() {
        let mut child = Command::new("true").spawn().unwrap();
        let pidfd = sys::process::pidfd_open(pid(&child)).unwrap();
        child.wait().unwrap();
        // The number is another process's now, which has children.
        kill(std::os::unix::process::parent_id() as i32, pidfd.as_fd()).unwrap();
    }

    #[test]
    fn name_of_a_process_does_not_pass_for_its_state() {
        let line = b"7 (a) T 1 (\xff) S 42 7 7 0 -1 4194304 1\n";
        assert_eq!(parse_stat(line), Some(Stat { state: b'S', parent: 42 }));
        for bad in [&b""[..], b"7 (a", b"7 (a)", b"7 (a) S", b"7 (a) S x", b"7 (a) \xff 1"] {
            assert_eq!(parse_stat(bad), None);
        }
    }
}
