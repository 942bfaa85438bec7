//! The converter's process: reads an archive from a pipe and writes the layer's file, in the jail.
//!
//! ```text
//! 0  archive, decompressed          2  one line where it fails
//! 1  output file, empty             3  socket to the daemon: asks for the layers below and takes their files
//! ```
//!
//! Started by `layer` through [`run_if_asked`], first thing in `main`: the daemon has threads, and a forked child of such a
//! process may do next to nothing safely, so it is the daemon's own program once more. It ends when the archive ends, and
//! the archive ends with the daemon. [`wait_for_request`] and [`send_files`] are the daemon's side of the socket.

use super::convert::{Limits, convert};
use super::erofs::Erofs;
use super::jail::JailError;
use super::overlay::Overlay;
use super::sys;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use tokio::io::{AsyncReadExt, Interest};
use tokio::process::Command;

pub use super::jail::{JAIL_FAILED, Jail};

/// First argument of the daemon's program where it is to be a converter.
const ARGUMENT: &str = "convert-layer";

/// Exit status of a conversion that failed; the reason is on standard error.
const FAILED: i32 = 1;

/// What the converter sends when it needs the layers below.
const LOWER_WANTED: u8 = b'L';

/// Goes with each packet of files: more follow, or these were the last.
const MORE: u8 = b'+';
const LAST: u8 = b'.';

/// Files in one message; the kernel takes 253 (`SCM_MAX_FD`).
const FILES_AT_ONCE: usize = 200;

/// Bytes of the archive that are taken from the pipe at once.
const READ_AHEAD: usize = 64 << 10;

/// What a converter does, and how it is confined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Worker {
    /// Its jail.
    pub jail: Jail,
    /// Most bytes of the output.
    pub output: u64,
    /// Most bytes of memory for names.
    pub names: usize,
}

impl Worker {
    /// The command that starts it: `launcher` is the daemon's own program. The caller sets the three standard streams.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn command(&self, launcher: &Path, socket: &UnixStream) -> io::Result<Command> {
        let mut command = Command::new(launcher);
        command.arg(ARGUMENT).arg(serde_json::to_string(self)?).env_clear().current_dir("/");
        sys::give_as_3(command.as_std_mut(), socket)?;
        Ok(command)
    }

    fn run(&self) -> Result<(), Box<dyn std::error::Error>> {
        let [archive, output, socket] = sys::streams()?;
        let limits = Limits { output: self.output, names: self.names };
        let lower = || receive_layers(&UnixStream::from(socket));
        convert(BufReader::with_capacity(READ_AHEAD, File::from(archive)), output.into(), lower, limits)?;
        Ok(())
    }
}

/// Does nothing unless [`Worker::command`] started this process.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|argument| argument != ARGUMENT) {
        return;
    }
    let text = arguments.next().unwrap_or_default();
    let worker = serde_json::from_str::<Worker>(&text.to_string_lossy()).map_err(JailError::from);
    let jailed = worker.and_then(|worker| worker.jail.enter().map(|()| worker));
    let status = match jailed {
        Err(error) => told(&error, JAIL_FAILED),
        Ok(worker) => worker.run().map_or_else(|error| told(&*error, FAILED), |()| 0),
    };
    std::process::exit(status);
}

fn told(error: &dyn std::error::Error, status: i32) -> i32 {
    // nobody is left to tell where this fails
    let _ = writeln!(io::stderr(), "{error}");
    status
}

/// Asks for the layers below and opens them, the topmost first.
fn receive_layers(mut socket: &UnixStream) -> io::Result<Overlay> {
    socket.write_all(&[LOWER_WANTED])?;
    let mut layers = Vec::new();
    loop {
        let (mut kind, mut space) = ([0], nix::cmsg_space!([RawFd; FILES_AT_ONCE]));
        let mut parts = [IoSliceMut::new(&mut kind)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        if message.bytes == 0 {
            return Err(io::Error::other("the daemon has given them up"));
        }
        for beside in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(files) = beside {
                layers.extend(sys::received(&files));
            }
        }
        if kind == [LAST] {
            let open = |file| Erofs::open(File::from(file)).map_err(io::Error::other);
            return Ok(Overlay::new(layers.into_iter().map(open).collect::<io::Result<_>>()?));
        }
    }
}

/// Waits until the converter asks for the layers below; for ever where it never does.
pub async fn wait_for_request(socket: &mut tokio::net::UnixStream) {
    match socket.read_u8().await {
        Ok(LOWER_WANTED) => {}
        // its exit status and its message say why
        Ok(_) | Err(_) => std::future::pending().await,
    }
}

/// Sends the files of the layers below, the topmost first.
///
/// # Errors
/// A converter that has ended.
pub async fn send_files(socket: &tokio::net::UnixStream, files: &[File]) -> io::Result<()> {
    let packets = files.len().div_ceil(FILES_AT_ONCE).max(1);
    for number in 0..packets {
        let begin = number * FILES_AT_ONCE;
        let some = &files[begin..files.len().min(begin + FILES_AT_ONCE)];
        let raw: Vec<RawFd> = some.iter().map(AsRawFd::as_raw_fd).collect();
        let beside = [ControlMessage::ScmRights(&raw)];
        let beside = if raw.is_empty() { &beside[..0] } else { &beside[..] };
        let kind = [if number + 1 == packets { LAST } else { MORE }];
        let send = || {
            let parts = [IoSlice::new(&kind)];
            Ok(sendmsg::<()>(socket.as_raw_fd(), &parts, beside, MsgFlags::MSG_NOSIGNAL, None)?)
        };
        socket.async_io(Interest::WRITABLE, send).await?;
    }
    Ok(())
}
