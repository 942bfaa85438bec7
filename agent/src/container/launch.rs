//! Starts the one-shot child ([`crate::child`]) and takes over what it makes. Everything here blocks: call it
//! off the event loop.

use crate::child::COMMAND;
use crate::child::message::{self, ChildReport, ChildRequest, Failure};
use crate::console;
use crate::process::tree;
use crate::reaper::{ProcessHandle, Reaper};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the child may take. Mounts on a slow volume are what takes long.
const DEADLINE: Duration = Duration::from_secs(60);

/// The agent's own program: reachable whatever happens to its path.
#[cfg(not(test))]
const SELF: &str = "/proc/self/exe";

/// In tests this program is another one ([`crate::in_guest`]).
#[cfg(test)]
const SELF: &str = "/sbin/isopod-agent";

/// Why nothing was launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The child, or the process that it made, says why.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The child could not be started or talked to.
    #[error("the agent's one-shot child cannot be {action}")]
    Child {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No answer.
    #[error("{waiting_for} took more than {} s", DEADLINE.as_secs())]
    Late {
        /// Whose answer.
        waiting_for: &'static str,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Child { action, source }
}

/// A new process, registered with the reaper.
#[derive(Debug)]
pub struct Launched {
    /// The process.
    pub process: ProcessHandle,
    /// The controlling end of its terminal, if it asked for one.
    pub terminal: Option<OwnedFd>,
    /// The one-shot child that made it, and which ends by itself. One that made an exec has the container's
    /// mounts until then.
    pub maker: ProcessHandle,
}

/// Has a one-shot child do what `request` says.
pub fn launch(
    reaper: &Reaper,
    request: &ChildRequest,
    fds: &[BorrowedFd<'_>],
) -> Result<Launched, LaunchError> {
    let (ours, theirs) = UnixStream::pair().map_err(failed("connected"))?;
    // The command goes at once, and its end of the socket with it: only the child's own keeps the connection
    // open.
    let child = reaper
        .spawn(Command::new(SELF).arg(COMMAND).env_clear().stdin(OwnedFd::from(theirs)).stdout(Stdio::null()))
        .map_err(failed("started"))?;
    let launched = converse(reaper, &ours, &child, request, fds);
    if launched.is_err() {
        // What it may have made is still its own child. Where the kernel killed it before its answer, for
        // want of memory, that child lives until its container ends.
        if let Err(error) = tree::kill(child.pid(), child.as_fd()) {
            console::error!("a one-shot child that failed left something behind: {error}");
        }
    }
    launched
}

fn converse(
    reaper: &Reaper,
    socket: &UnixStream,
    child: &ProcessHandle,
    request: &ChildRequest,
    fds: &[BorrowedFd<'_>],
) -> Result<Launched, LaunchError> {
    message::send(socket, request, fds).map_err(failed("told what to do"))?;
    // The container's process holds the socket too, so its end does not tell that the child has died.
    let answered = await_readable(&[socket.as_fd(), child.as_fd()], "the agent's one-shot child")?;
    if !answered {
        return Err(failed("understood: it ended without an answer")(io::ErrorKind::BrokenPipe.into()));
    }
    // The rest of an answer that has begun is on its way.
    socket.set_read_timeout(Some(DEADLINE)).map_err(failed("listened to"))?;
    let (report, fds) = message::receive::<ChildReport>(socket).map_err(failed("understood"))?;
    match report {
        ChildReport::Failed(failure) => Err(failure.into()),
        ChildReport::Ready { pid } => {
            let process = reaper.register(pid).map_err(failed("relieved of what it made"))?;
            Ok(Launched { process, terminal: fds.into_iter().next(), maker: child.clone() })
        }
    }
}

/// Waits until the new process executes its command, or says why it cannot.
pub fn await_exec(status: OwnedFd) -> Result<(), LaunchError> {
    let mut text = Vec::new();
    let mut status = File::from(status);
    loop {
        await_readable(&[status.as_fd()], "the execution of the container's command")?;
        let mut chunk = [0; 4096];
        match status.read(&mut chunk).map_err(failed("watched"))? {
            0 if text.is_empty() => return Ok(()),
            0 => {
                let failure: Failure =
                    serde_json::from_slice(&text).map_err(|error| failed("understood")(error.into()))?;
                return Err(failure.into());
            }
            count => text.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Waits until one of the descriptors is readable or hung up; answers whether the first one is.
fn await_readable(fds: &[BorrowedFd<'_>], waiting_for: &'static str) -> Result<bool, LaunchError> {
    let deadline = Instant::now() + DEADLINE;
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).expect("a minute fits poll's timeout");
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(LaunchError::Late { waiting_for }),
            Ok(_) => return Ok(fds[0].any().unwrap_or(true)),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(failed("waited for")(errno.into())),
        }
    }
}
