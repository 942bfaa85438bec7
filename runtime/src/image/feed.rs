//! What the pieces of a download are given to: the pump, or, where they are zstd, a jailed process that
//! decompresses them for it.
//!
//! ```text
//! plain, gzip   pieces -> channel -> pump
//! zstd          pieces -> pipe -> decompressor, jailed -> pipe -> pump
//! ```
//!
//! Used by `layer`. The pump counts and hashes what comes out in either case: nothing that the decompressor
//! says is believed but that it has failed.

use super::compression::{Format, gzip};
use super::error::ImageError;
use super::process::{Process, broken};
use super::worker::{Decompressor, Jail};
use crate::undo::Undo;
use bytes::{Buf, Bytes};
use std::io::{self, BufRead, PipeReader, PipeWriter, Read};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;

/// Pieces of a download that wait for the pump.
const PIECES_WAITING: usize = 32;

/// Size of a pipe, in bytes: fewer switches between its ends.
const PIPE_SIZE: i32 = 1 << 20;

/// Where the pump finds the archive.
pub enum Source {
    /// In the pieces, as they are.
    Plain(Pieces),
    /// In the pieces.
    Gzip(Pieces),
    /// In what the decompressor writes.
    Decompressor(PipeReader),
}

impl Source {
    /// The archive. It waits for its first bytes, so the pump's own thread opens it.
    pub fn open(self) -> Box<dyn Read> {
        match self {
            Self::Plain(pieces) => Box::new(pieces),
            Self::Gzip(pieces) => Box::new(gzip(pieces)),
            Self::Decompressor(pipe) => Box::new(pipe),
        }
    }
}

/// Takes the pieces of one download. Dropped, it ends the archive.
pub struct Feed {
    sink: Sink,
    decompressor: Option<Process>,
}

enum Sink {
    Pump(mpsc::Sender<Bytes>),
    Decompressor(ChildStdin),
}

impl Feed {
    /// For a download that begins with `first`. Where it is zstd, `launcher` is started in `jail`.
    ///
    /// # Errors
    /// The decompressor cannot be started.
    pub fn new(
        first: &[u8],
        launcher: &Path,
        jail: Jail,
        undo: &mut Undo,
    ) -> Result<(Self, Source), ImageError> {
        match Format::of(first) {
            Format::Plain => Ok(Self::to_pump(Source::Plain)),
            Format::Gzip => Ok(Self::to_pump(Source::Gzip)),
            Format::Zstd => Self::to_decompressor(launcher, jail, undo),
        }
    }

    fn to_pump(source: impl FnOnce(Pieces) -> Source) -> (Self, Source) {
        let (sink, pieces) = mpsc::channel(PIECES_WAITING);
        let source = source(Pieces { pieces, current: Bytes::new() });
        (Self { sink: Sink::Pump(sink), decompressor: None }, source)
    }

    fn to_decompressor(launcher: &Path, jail: Jail, undo: &mut Undo) -> Result<(Self, Source), ImageError> {
        let (reader, writer) = pipe()?;
        let command = Decompressor { jail }.command(launcher);
        let mut command = command.map_err(|error| broken(format!("no arguments: {error}")))?;
        command.stdin(Stdio::piped()).stdout(Stdio::from(writer));
        let (process, input) = Process::start("decompressor", &mut command, undo)?;
        let input = input.ok_or_else(|| broken("the decompressor has no input".to_owned()))?;
        let feed = Self { sink: Sink::Decompressor(input), decompressor: Some(process) };
        Ok((feed, Source::Decompressor(reader)))
    }

    /// Gives it a piece, and waits while there is no room. Where nobody takes it any more, the pump or the
    /// decompressor says why when it has ended.
    pub async fn give(&mut self, piece: Bytes) {
        match &mut self.sink {
            Sink::Pump(sink) => drop(sink.send(piece).await),
            Sink::Decompressor(sink) => drop(sink.write_all(&piece).await),
        }
    }

    /// The download has ended. Gives the decompressor, where there is one: it ends next, and says then how it
    /// went.
    pub fn end(self) -> Option<Process> {
        self.decompressor
    }
}

/// A pipe between two that work on an archive.
///
/// # Errors
/// No descriptor is left.
pub fn pipe() -> Result<(PipeReader, PipeWriter), ImageError> {
    let (reader, writer) = io::pipe().map_err(|error| broken(format!("no pipe: {error}")))?;
    // a smaller pipe is slower, not wrong: the size is capped for users without privileges
    let _ = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    Ok((reader, writer))
}

/// The pieces of a download as one stream.
pub struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let amount = available.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::test_registry::gzip;

    /// What the pump reads of `bytes`, given in pieces of a hundred.
    fn read(bytes: &[u8]) -> Vec<u8> {
        let jail =
            Jail { uid: 1, cgroup: None, mount_point: "/nowhere".into(), largest_file: 0, cpu_seconds: 0 };
        let mut undo = Undo::new("PullLayer");
        let (mut feed, source) = Feed::new(bytes, Path::new("/nowhere"), jail, &mut undo).unwrap();
        let pumped = std::thread::spawn(move || {
            let mut archive = Vec::new();
            source.open().read_to_end(&mut archive).unwrap();
            archive
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for piece in bytes.chunks(100) {
                feed.give(Bytes::copy_from_slice(piece)).await;
            }
        });
        assert!(feed.end().is_none(), "no process is needed for this");
        pumped.join().unwrap()
    }

    #[test]
    fn plain_and_gzip_give_the_same_archive_without_a_process() {
        let tar = b"some content ".repeat(1000);
        let members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
        for bytes in [tar.clone(), gzip(&tar), members] {
            assert_eq!(read(&bytes), tar);
        }
    }
}
