//! A process's standard input: filled from one connection at a time.
//!
//! How a connection ends matters. A host that closes only its sending direction says "end of file", and the
//! process reads it. A connection that is gone as a whole is a break: the process's input stays open for the
//! next one, unless it was asked to follow its first connection (`stdin_once`). So a host that has sent end
//! of file keeps the connection until the agent closes it.

use super::connection::{Connection, send_opened};
use super::turn::Turn;
use crate::lock::locked;
use crate::sys;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;

/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;

/// What an input is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// A pipe: its end is the end of file.
    Pipe,
    /// A terminal: it has no end of file, so closing changes nothing.
    Terminal,
}

/// A stream that a process reads.
#[derive(Debug)]
pub struct Input {
    /// Absent when the process has read, or will read, end of file.
    pipe: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    kind: InputKind,
    once: bool,
    turn: Turn,
}

impl Input {
    /// An input that writes to `pipe`, which must not block. With `once` it ends with its first connection.
    pub fn new(pipe: OwnedFd, kind: InputKind, once: bool) -> io::Result<Input> {
        let pipe = Mutex::new(Some(Arc::new(sys::descriptor::watch_readiness(pipe)?)));
        Ok(Input { pipe, kind, once, turn: Turn::default() })
    }

    /// Nobody will read any more: connections end, and later ones end at once.
    pub fn close(&self) {
        locked(&self.pipe).take();
        self.turn.retire();
    }

    fn pipe(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        locked(&self.pipe).clone()
    }

    /// Serves the stream on a connection, until the connection ends or another one takes its place.
    pub async fn serve<C: Connection>(&self, mut connection: C) {
        let mut turn = self.turn.take();
        if send_opened::<_, &str>(&mut connection, Ok(0)).await.is_err() {
            return;
        }
        // Held only while this connection serves, so that a close from elsewhere ends the pipe.
        let Some(pipe) = self.pipe() else { return };
        let ended = tokio::select! {
            end = copy(&mut connection, &pipe) => end,
            () = turn.lost() => return,
        };
        drop(pipe);
        let end_of_file = match ended {
            // The process has closed its input.
            End::Process => true,
            End::HalfClosed => true,
            End::Broken => self.once,
        };
        if end_of_file && self.kind == InputKind::Pipe {
            locked(&self.pipe).take();
        }
    }
}

/// How a connection came to its end.
enum End {
    Process,
    HalfClosed,
    Broken,
}

async fn copy<C: Connection>(connection: &mut C, pipe: &AsyncFd<OwnedFd>) -> End {
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match connection.read(&mut chunk).await {
            Ok(0) => return if is_gone(connection) { End::Broken } else { End::HalfClosed },
            Ok(count) => count,
            Err(_) => return End::Broken,
        };
        if write_all(pipe, &chunk[..count]).await.is_err() {
            return End::Process;
        }
    }
}

/// Whether the peer has closed both directions, of which `read` shows only one. Sending nothing sends
/// nothing, and fails when the peer does not receive any more; poll's hang-up would not do, as vsock tells of
/// it only after we have closed too.
fn is_gone(connection: &impl AsFd) -> bool {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(connection.as_fd().as_raw_fd(), &[], flags) == Err(Errno::EPIPE)
}

async fn write_all(pipe: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = pipe.writable().await?;
        let written = ready.try_io(|pipe| Ok(nix::unistd::write(pipe.as_fd(), bytes)?));
        if let Ok(count) = written {
            bytes = &bytes[count?..];
        }
    }
    Ok(())
}
