//! The jailed processes of a layer. The converter reads an archive from a pipe and writes the layer's file;
//! the decompressor reads zstd from a pipe and writes what it holds to another.
//!
//! ```text
//!     converter                   decompressor
//! 0   archive, decompressed       zstd
//! 1   output file, empty          archive
//! 2   one line where it fails     one line where it fails
//! 3   socket to the daemon: asks for the layers below and takes their files
//! ```
//!
//! Started by `layer` and `feed` through [`run_if_asked`], first thing in `main`: the daemon has threads, and
//! a forked child of such a process may do next to nothing safely, so each is the daemon's own program once
//! more. It ends when its input ends, and that ends with the daemon. [`wait_for_request`] and [`send_files`]
//! are the daemon's side of the socket.

use super::compression::zstd;
use super::convert::{Limits, convert};
use super::erofs::Erofs;
use super::jail::JailError;
use super::overlay::Overlay;
use super::sys;
use crate::oom_score;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use tokio::io::{AsyncReadExt, Interest};
use tokio::process::Command;

pub use super::jail::{JAIL_FAILED, Jail};

/// First argument of the daemon's program where it is to be a converter, or a decompressor.
const CONVERT: &str = "convert-layer";
const DECOMPRESS: &str = "decompress-layer";

/// Exit status of a process that failed; the reason is on standard error.
const FAILED: i32 = 1;

/// What the converter sends when it needs the layers below.
const LOWER_WANTED: u8 = b'L';

/// Goes with each packet of files: more follow, or these were the last.
const MORE: u8 = b'+';
const LAST: u8 = b'.';

/// Files in one message; the kernel takes 253 (`SCM_MAX_FD`).
const FILES_AT_ONCE: usize = 200;

/// Bytes that are taken from a pipe at once.
const READ_AHEAD: usize = 64 << 10;

/// Bytes that a decompressor writes at once: a block of zstd.
const BLOCK: usize = 128 << 10;

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
        command.arg(CONVERT).arg(serde_json::to_string(self)?).env_clear().current_dir("/");
        sys::give_as_3(command.as_std_mut(), socket)?;
        Ok(command)
    }

    fn run(&self) -> Result<(), Box<dyn std::error::Error>> {
        let ([archive, output], socket) = (sys::streams()?, sys::socket()?);
        let limits = Limits { output: self.output, names: self.names };
        let lower = || receive_layers(&UnixStream::from(socket));
        convert(BufReader::with_capacity(READ_AHEAD, File::from(archive)), output.into(), lower, limits)?;
        Ok(())
    }
}

/// How a decompressor is confined. What it does needs no telling.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decompressor {
    /// Its jail.
    pub jail: Jail,
}

impl Decompressor {
    /// As [`Worker::command`], without a socket.
    ///
    /// # Errors
    /// A path of the jail that is no text.
    pub fn command(&self, launcher: &Path) -> io::Result<Command> {
        let mut command = Command::new(launcher);
        command.arg(DECOMPRESS).arg(serde_json::to_string(self)?).env_clear().current_dir("/");
        Ok(command)
    }

    fn run() -> Result<(), Box<dyn std::error::Error>> {
        let [compressed, archive] = sys::streams()?;
        let mut archive = File::from(archive);
        let mut source = zstd(BufReader::with_capacity(READ_AHEAD, File::from(compressed)))?;
        let mut block = vec![0; BLOCK];
        loop {
            match source.read(&mut block)? {
                0 => return Ok(()),
                length => archive.write_all(&block[..length])?,
            }
        }
    }
}

/// Does nothing unless [`Worker::command`] or [`Decompressor::command`] started this process.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    let what = arguments.next().unwrap_or_default();
    let told_to = arguments.next().unwrap_or_default();
    let told_to = told_to.to_string_lossy();
    if what == CONVERT || what == DECOMPRESS {
        // The jail has no /proc. One that keeps the daemon's score does its work all the same.
        let _ = oom_score::set_own(oom_score::FIRST);
    }
    let jailed = if what == CONVERT {
        let worker = serde_json::from_str::<Worker>(&told_to).map_err(JailError::from);
        worker.and_then(|worker| worker.jail.enter(true).map(|()| worker.run()))
    } else if what == DECOMPRESS {
        let decompressor = serde_json::from_str::<Decompressor>(&told_to).map_err(JailError::from);
        let entered = decompressor.and_then(|its| its.jail.enter(false));
        entered.map(|()| Decompressor::run())
    } else {
        return;
    };
    let status = match jailed {
        Err(error) => told(&error, JAIL_FAILED),
        Ok(Err(error)) => told(&*error, FAILED),
        Ok(Ok(())) => 0,
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
