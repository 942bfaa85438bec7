//! Bytes in and out of processes: one vsock connection per stream, as [`isopod_protocols::stdio`] defines it.
//!
//! | module | |
//! |---|---|
//! | [`connection`] | what carries a stream, and how its opening is answered |
//! | [`ring`] | bytes that the host has yet to keep; pure |
//! | [`output`] | process -> ring -> connection |
//! | [`input`] | connection -> process |
//! | [`turn`] | the latest connection of a stream is the one that counts |
//!
//! `server::streams` accepts the connections and finds the process of each.

pub mod connection;
mod input;
mod output;
mod ring;
mod turn;

use crate::sys;
use connection::{Connection, refuse};
use input::{Input, InputKind};
use isopod_protocols::agent::Stream;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Uid, fchown, pipe2};
use output::Output;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The streams of one process. They outlive it, until they are closed.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<Input>,
    stdout: Output,
    stderr: Option<Output>,
    terminal: Option<OwnedFd>,
}

/// What a process wants with its standard input.
#[derive(Debug, Clone, Copy)]
pub struct Stdin {
    /// It is to be open at all.
    pub open: bool,
    /// It ends with its first connection.
    pub once: bool,
}

/// The streams of a process that is being made: its pipes are there before it, its terminal only after it.
#[derive(Debug)]
pub struct PendingStreams {
    stdin: Stdin,
    owner: u32,
    /// Absent where the process gets a terminal.
    streams: Option<Streams>,
}

impl PendingStreams {
    /// Streams for a process of user `owner`, and what it gets as stdin, stdout and stderr if it gets no
    /// terminal.
    pub fn new(
        terminal: bool,
        stdin: Stdin,
        owner: u32,
    ) -> io::Result<(PendingStreams, Option<[OwnedFd; 3]>)> {
        if terminal {
            return Ok((PendingStreams { stdin, owner, streams: None }, None));
        }
        let (streams, pipes) = Streams::pipes(stdin, owner)?;
        Ok((PendingStreams { stdin, owner, streams: Some(streams) }, Some(pipes)))
    }

    /// The streams of the process, once it was made; `terminal` is the controlling end of its terminal, if it
    /// has one.
    pub fn complete(self, terminal: Option<OwnedFd>) -> io::Result<Streams> {
        match (self.streams, terminal) {
            (Some(streams), _) => Ok(streams),
            (None, Some(terminal)) => Streams::terminal(terminal, self.stdin, self.owner),
            (None, None) => Err(io::Error::other("its terminal did not arrive")),
        }
    }
}

impl Streams {
    /// Pipes for a process of user `owner`: our ends as streams, and the process's stdin, stdout and stderr.
    fn pipes(stdin: Stdin, owner: u32) -> io::Result<(Streams, [OwnedFd; 3])> {
        let (input, their_stdin) = if stdin.open {
            let (theirs, ours) = pipe(owner)?;
            let input = Input::new(unblocking(ours)?, InputKind::Pipe, stdin.once)?;
            (Some(input), theirs)
        } else {
            (None, OwnedFd::from(File::open("/dev/null")?))
        };
        let (our_stdout, their_stdout) = pipe(owner)?;
        let (our_stderr, their_stderr) = pipe(owner)?;
        let streams = Streams {
            stdin: input,
            stdout: Output::new(unblocking(our_stdout)?)?,
            stderr: Some(Output::new(unblocking(our_stderr)?)?),
            terminal: None,
        };
        Ok((streams, [their_stdin, their_stdout, their_stderr]))
    }

    /// The streams of a process of user `owner` on a terminal, of which `controller` is the controlling end.
    fn terminal(controller: OwnedFd, stdin: Stdin, owner: u32) -> io::Result<Streams> {
        sys::terminal::give_terminal(controller.as_fd(), owner)?;
        let controller = unblocking(controller)?;
        let input = if stdin.open {
            Some(Input::new(controller.try_clone()?, InputKind::Terminal, stdin.once)?)
        } else {
            None
        };
        let stdout = Output::new(controller.try_clone()?)?;
        Ok(Streams { stdin: input, stdout, stderr: None, terminal: Some(controller) })
    }

    /// Whether the process has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Sets the terminal's size, in characters. Without terminal nothing happens.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &self.terminal {
            Some(controller) => sys::terminal::set_terminal_size(controller.as_fd(), columns, rows),
            None => Ok(()),
        }
    }

    /// The process has ended: nobody reads its input any more.
    pub fn close_stdin(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
    }

    /// The process is removed: what the host has not taken is given up, and connections end.
    pub fn close(&self) {
        self.close_stdin();
        self.stdout.close();
        if let Some(stderr) = &self.stderr {
            stderr.close();
        }
    }

    /// The process is removed while others may still hold its pipes: what they write is read and dropped, so
    /// that they live on. A terminal is closed, which hangs up whoever is on it.
    pub fn abandon(&self) {
        if self.has_terminal() {
            return self.close();
        }
        self.close_stdin();
        self.stdout.abandon();
        if let Some(stderr) = &self.stderr {
            stderr.abandon();
        }
    }

    /// Serves one of the streams on a connection until that ends.
    pub async fn serve<C: Connection>(&self, stream: Stream, resume_at: Option<u64>, mut connection: C) {
        match stream {
            Stream::Stdin => match &self.stdin {
                Some(stdin) => stdin.serve(connection).await,
                None => refuse(&mut connection, "the process was made without stdin").await,
            },
            Stream::Stdout => self.stdout.serve(connection, resume_at).await,
            Stream::Stderr => match &self.stderr {
                Some(stderr) => stderr.serve(connection, resume_at).await,
                None => refuse(&mut connection, "a process on a terminal has no stderr of its own").await,
            },
        }
    }
}

/// A pipe (reading end, writing end) that a process of user `owner` may open again through /dev/stdout.
fn pipe(owner: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fchown(&writer, Some(Uid::from_raw(owner)), None)?;
    Ok((reader, writer))
}

/// Each end of a pipe, and each side of a terminal, blocks or not by itself.
fn unblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

#[cfg(test)]
mod tests;
