//! What the agent and its one-shot child say to each other: JSON behind its length, with descriptors, on a
//! socket pair.
//!
//! ```text
//! agent                                              child
//!   | -- ChildRequest, descriptors ------------------> |
//!   | <-- ChildReport::Ready { pid }, terminal ------- |  the new process is the child's own until ...
//!   | -- end of file --------------------------------> |  ... the agent has registered it
//! ```
//!
//! Whether the new process came to execute its command is said on a pipe of its own, the *status pipe*: it
//! closes by exec, and holds a [`Failure`] otherwise.

use crate::sys::descriptor::{self, MAX_FDS};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Longest message, in bytes: an exec's arguments and environment may have all that a gRPC request may have,
/// and a byte of the environment takes up to four as JSON.
const MAX: usize = 32 * 1024 * 1024;

/// What the child is to make.
#[derive(Debug, Serialize, Deserialize)]
pub enum ChildRequest {
    /// A container, up to the exec of its command. Descriptors: status pipe, and without terminal stdin,
    /// stdout, stderr.
    Container(ContainerRequest),
    /// A process in a container that runs. Descriptors: status pipe, pidfd of the container's first process,
    /// the container's mount namespace, its other namespaces, and without terminal stdin, stdout, stderr.
    Exec(ExecRequest),
    /// A pid namespace and the process that holds it. No descriptors.
    PidNamespace,
}

/// See [`ChildRequest::Container`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerRequest {
    /// Its id.
    pub id: String,
    /// Directory below which the library makes the container's own directory.
    pub states: PathBuf,
    /// Directory that holds `config.json`.
    pub bundle: PathBuf,
    /// Give it a terminal.
    pub terminal: bool,
}

/// See [`ChildRequest::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container's spec, whose user, capabilities, limits and seccomp profile hold for the process.
    pub config: PathBuf,
    /// Directory of the container's cgroup, in which the process is born.
    pub cgroup: PathBuf,
    /// The container's first process, by its number for the agent.
    pub first_pid: i32,
    /// How many other namespaces come along.
    pub other_namespaces: usize,
    /// Command line.
    pub args: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<Vec<u8>>,
    /// Give it a terminal.
    pub terminal: bool,
}

/// What the child made.
#[derive(Debug, Serialize, Deserialize)]
pub enum ChildReport {
    /// The new process exists. With a terminal, its controlling end comes along.
    Ready {
        /// Its id in the agent's pid namespace.
        pid: i32,
    },
    /// Nothing was made.
    Failed(Failure),
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The command cannot be executed.
    Command,
    /// The spec or request asks for something that cannot be.
    Request,
    /// The guest failed.
    Guest,
}

/// Why something was not made, or not executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Whose fault it is.
    pub fault: Fault,
    /// What happened, for a person.
    pub message: String,
}

impl Failure {
    /// The guest's fault: an error while doing something.
    pub fn guest(doing: &str, error: impl std::error::Error) -> Failure {
        Failure { fault: Fault::Guest, message: format!("{doing}: {}", with_causes(&error)) }
    }

    /// The request's fault.
    pub fn request(message: String) -> Failure {
        Failure { fault: Fault::Request, message }
    }
}

/// What the child made, before it reports it.
#[derive(Debug)]
pub struct Made {
    /// The new process, by its id in the agent's pid namespace.
    pub pid: i32,
    /// The controlling end of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// The descriptors that a request came with, one by one.
#[derive(Debug)]
pub struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    /// The descriptors in the order of the request.
    pub fn new(fds: Vec<OwnedFd>) -> Descriptors {
        Descriptors(fds.into_iter())
    }

    /// Takes the next one; that there is none is the guest's fault.
    pub fn take(&mut self) -> Result<OwnedFd, Failure> {
        let missing = || Failure { fault: Fault::Guest, message: "request lacks a descriptor".to_owned() };
        self.0.next().ok_or_else(missing)
    }
}

/// The text of an error followed by those of its causes, each once.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent errors repeat their cause's text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Sends a message and descriptors.
pub fn send(socket: &UnixStream, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    debug_assert!(fds.len() <= MAX_FDS);
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    // Four bytes fit any socket buffer, so they leave in one piece, with the descriptors.
    descriptor::send_with_fds(socket, &length, fds)?;
    let mut socket = socket;
    socket.write_all(&body)
}

/// Receives a message and the descriptors that came along.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let (count, fds) = descriptor::receive_with_fds(socket, &mut length)?;
    let mut socket = socket;
    socket.read_exact(&mut length[count..])?;
    let length = u32::from_le_bytes(length) as usize;
    if count == 0 || length > MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message has no length or is too long"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn message_and_descriptors_arrive_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&ours, &ChildReport::Ready { pid: 7 }, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (report, mut fds) = receive::<ChildReport>(&theirs).unwrap();
        assert!(matches!(report, ChildReport::Ready { pid: 7 }));
        std::fs::File::from(fds.pop().unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn large_message_survives_a_small_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = ChildRequest::Exec(ExecRequest {
            config: PathBuf::new(),
            cgroup: PathBuf::new(),
            first_pid: 1,
            other_namespaces: 0,
            args: vec!["x".repeat(1 << 20)],
            env: Vec::new(),
            terminal: false,
        });
        let sender = std::thread::spawn(move || send(&ours, &request, &[]));
        let (request, _) = receive::<ChildRequest>(&theirs).unwrap();
        assert!(matches!(request, ChildRequest::Exec(exec) if exec.args[0].len() == 1 << 20));
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn closed_socket_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(receive::<ChildReport>(&theirs).is_err());
    }
}
