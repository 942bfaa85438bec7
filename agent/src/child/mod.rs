//! The one-shot, single-threaded child that makes containers and processes in them.
//!
//! The container library changes the process that calls it (working directory, dumpable flag, OOM score) and runs Rust
//! code after a raw clone, and entering a mount namespace needs a process with one thread: none of that is for the agent.
//! So the agent starts its own binary anew for each container and exec; this is that program. It gets one request on its
//! standard input, which is a socket, answers with one report, and stays the parent of what it made until the agent has
//! written that down (see [`message`]).

mod birth;
pub mod command;
mod create;
pub mod environment;
mod exec;
pub mod filter;
pub mod message;
mod null;
mod pid_namespace;

use message::{Failure, Fault, Report, Request};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// First argument that makes this binary the child.
pub const COMMAND: &str = "container-child";

/// What was made: the process, and the controlling end of its terminal.
struct Made {
    pid: i32,
    terminal: Option<OwnedFd>,
}

/// The child's life.
pub fn run() -> ExitCode {
    // A duplicate, as standard input becomes that of the new process.
    let socket = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixStream::from(socket),
        Err(_) => return ExitCode::FAILURE,
    };
    let answered = match message::receive::<Request>(&socket) {
        Ok((request, fds)) => answer(&socket, make(request, fds)),
        Err(error) => answer(&socket, Err(Failure::guest("request cannot be read", error))),
    };
    if answered.is_err() {
        // The agent is not there to take what was made over, and whoever inherits it does not know of it.
        return ExitCode::FAILURE;
    }
    // Until the agent closes its end.
    let _ = (&socket).read(&mut [0]);
    ExitCode::SUCCESS
}

fn make(request: Request, fds: Vec<OwnedFd>) -> Result<Made, Failure> {
    match request {
        Request::Container(request) => create::create(&request, fds),
        Request::Exec(request) => exec::exec(&request, fds),
        Request::PidNamespace => pid_namespace::make(),
    }
}

fn answer(socket: &UnixStream, made: Result<Made, Failure>) -> std::io::Result<()> {
    match made {
        Ok(made) => {
            let terminal = made.terminal.as_ref().map(AsFd::as_fd);
            message::send(socket, &Report::Ready { pid: made.pid }, terminal.as_slice())
        }
        Err(failure) => message::send(socket, &Report::Failed(failure), &[]),
    }
}

/// The descriptors that a request came with, one by one.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn new(fds: Vec<OwnedFd>) -> Descriptors {
        Descriptors(fds.into_iter())
    }

    fn next(&mut self) -> Result<OwnedFd, Failure> {
        let missing = || Failure { fault: Fault::Guest, message: "request lacks a descriptor".to_owned() };
        self.0.next().ok_or_else(missing)
    }
}
