//! The one-shot, single-threaded child that makes containers and processes in them.
//!
//! The container library changes the process that calls it (working directory, dumpable flag, OOM score) and
//! runs Rust code after a raw clone, and entering a mount namespace needs a process with one thread: none of
//! that is for the agent. So the agent starts its own binary anew for each container and exec; this is that
//! program. It gets one request on its standard input, which is a socket, answers with one report, and stays
//! the parent of what it made until the agent has registered it (see [`message`]).

mod birth;
pub mod command;
mod create;
pub mod environment;
mod exec;
pub mod filter;
pub mod message;
mod null;
mod pid_namespace;

use message::{ChildReport, ChildRequest, Failure, Made};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// First argument that makes this binary the child.
pub const COMMAND: &str = "container-child";

/// The child's life.
pub fn run() -> ExitCode {
    // A duplicate, as standard input becomes that of the new process.
    let socket = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixStream::from(socket),
        Err(_) => return ExitCode::FAILURE,
    };
    let reported = match message::receive::<ChildRequest>(&socket) {
        Ok((request, fds)) => report(&socket, make(request, fds)),
        Err(error) => report(&socket, Err(Failure::guest("request cannot be read", error))),
    };
    if reported.is_err() {
        // The agent is not there to take what was made over, and whoever inherits it does not know of it.
        return ExitCode::FAILURE;
    }
    // Until the agent closes its end.
    let _ = (&socket).read(&mut [0]);
    ExitCode::SUCCESS
}

fn make(request: ChildRequest, fds: Vec<OwnedFd>) -> Result<Made, Failure> {
    match request {
        ChildRequest::Container(request) => create::create(&request, fds),
        ChildRequest::Exec(request) => exec::exec(&request, fds),
        ChildRequest::PidNamespace => pid_namespace::make(),
    }
}

fn report(socket: &UnixStream, made: Result<Made, Failure>) -> std::io::Result<()> {
    match made {
        Ok(made) => {
            let terminal = made.terminal.as_ref().map(AsFd::as_fd);
            message::send(socket, &ChildReport::Ready { pid: made.pid }, terminal.as_slice())
        }
        Err(failure) => message::send(socket, &ChildReport::Failed(failure), &[]),
    }
}
