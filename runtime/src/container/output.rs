//! A container's output on its way to the log: a task per stream, which opens the stream again after every break until
//! the container is done or its VM is gone.
//!
//! Called by `start` and by a starting daemon. How far a stream has come is kept in a file of 8 bytes beside the records,
//! so that a daemon that was killed goes on where it was: bytes may be in the log twice if it died between writing them
//! and noting it, and are never missing.

use super::log::{Lines, LogFile};
use super::stdio::{self, Address, Sink, StdioError};
use crate::hypervisor::VmHandle;
use isopod_protocols::agent::Stream;
use isopod_protocols::vsock::STDIO_PORT;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Pause before a stream that broke is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// Time to write what has come of a stream that is given up.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The task of one stream. Dropped, as when the daemon goes down, it leaves the rest of the stream to the next daemon.
pub struct Carried {
    task: JoinHandle<()>,
    give_up: oneshot::Sender<()>,
}

impl Carried {
    /// Waits for the stream's end. At `limit` the stream counts as ended: what has no line end yet is a last
    /// line. Answers whether the stream ended by itself.
    pub async fn finish(mut self, limit: Duration) -> bool {
        if tokio::time::timeout(limit, &mut self.task).await.is_ok() {
            return true;
        }
        let _ = self.give_up.send(());
        if tokio::time::timeout(LAST_WRITE, &mut self.task).await.is_err() {
            self.task.abort();
        }
        false
    }
}

/// Where a stream's position is kept.
pub fn position_path(directory: &Path, container_id: &str, stream: Stream) -> PathBuf {
    directory.join(format!("{container_id}.{}", name(stream)))
}

fn name(stream: Stream) -> &'static str {
    if stream == Stream::Stderr { "stderr" } else { "stdout" }
}

/// Carries one stream to the log until its end. Without a log the bytes are read and dropped, so that the container is
/// not held up.
pub fn carry(
    vm: VmHandle,
    container_id: &str,
    stream: Stream,
    log: Option<Arc<LogFile>>,
    position: &Path,
) -> io::Result<Carried> {
    let address = Address { container_id: container_id.to_owned(), process_id: String::new(), stream };
    let mut sink = LogSink::open(name(stream), log, position)?;
    let (give_up, given_up) = oneshot::channel::<()>();
    let given_up = async {
        if given_up.await.is_err() {
            // Dropped and not sent: the stream goes on without this daemon.
            std::future::pending::<()>().await;
        }
    };
    let task = tokio::spawn(async move {
        tokio::select! {
            () = vm.ended() => {}
            () = carry_all(&vm, &address, &mut sink) => {}
            () = given_up => {}
        }
        sink.finish();
    });
    Ok(Carried { task, give_up })
}

async fn carry_all(vm: &VmHandle, address: &Address, sink: &mut LogSink) {
    loop {
        match carry_once(vm, address, sink).await {
            Ok(()) => return,
            Err(StdioError::Refused { reason, .. }) => {
                tracing::warn!(container = address.container_id, reason, "output stream refused");
                return;
            }
            Err(error) => tracing::debug!(container = address.container_id, %error, "output stream broke"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn carry_once(vm: &VmHandle, address: &Address, sink: &mut LogSink) -> Result<(), StdioError> {
    let broken = |source| StdioError::Io { container: address.container_id.clone(), source };
    let connection = vm.connect_vsock(STDIO_PORT).await;
    let mut connection = connection.map_err(|e| broken(io::Error::other(e)))?;
    let offset = stdio::open(&mut connection, address, Some(sink.arrived())).await?;
    sink.resume(offset);
    stdio::pump(&mut connection, sink).await.map_err(broken)
}

/// Turns a stream's bytes into lines of the log, and notes how many have arrived there.
struct LogSink {
    lines: Lines,
    received: u64,
    log: Option<Arc<LogFile>>,
    position: File,
    failing: bool,
}

impl LogSink {
    fn open(stream: &'static str, log: Option<Arc<LogFile>>, position: &Path) -> io::Result<Self> {
        let position =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(position)?;
        let mut bytes = [0; 8];
        let received = match position.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { lines: Lines::new(stream), received, log, position, failing: false })
    }

    /// Bytes of the stream that are in the log.
    fn arrived(&self) -> u64 {
        self.received - self.lines.pending() as u64
    }

    /// What was held back comes again.
    fn resume(&mut self, offset: u64) {
        self.lines.clear();
        self.received = offset;
    }

    fn write(&mut self, log_lines: &[u8]) {
        let outcome = match &self.log {
            Some(log) if !log_lines.is_empty() => log.append(log_lines),
            _ => Ok(()),
        };
        match outcome {
            Ok(()) => self.failing = false,
            // A full disk must not stop the container: lines are lost, and that is said once.
            Err(error) if !self.failing => {
                tracing::error!(%error, "log lines are lost until it can be written again");
                self.failing = true;
            }
            Err(_) => {}
        }
    }

    /// Whatever has no line's end will get none any more.
    fn finish(&mut self) {
        let rest = self.lines.finish(SystemTime::now());
        self.write(&rest);
        if let Err(error) = self.position.write_all_at(&self.arrived().to_le_bytes(), 0) {
            tracing::warn!(%error, "position of a finished stream is not kept");
        }
    }
}

impl Sink for LogSink {
    fn take(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let lines = self.lines.feed(bytes, SystemTime::now());
        self.received += bytes.len() as u64;
        self.write(&lines);
        if !lines.is_empty() || self.log.is_none() {
            self.position.write_all_at(&self.arrived().to_le_bytes(), 0)?;
        }
        Ok(self.arrived())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(directory: &tempfile::TempDir) -> LogSink {
        let log = Arc::new(LogFile::open(&directory.path().join("0.log")).unwrap());
        LogSink::open("stdout", Some(log), &directory.path().join("position")).unwrap()
    }

    #[test]
    fn only_what_is_in_the_log_counts_as_arrived() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = sink(&directory);
        assert_eq!(first.take(b"whole\nhal").unwrap(), 6);
        drop(first);
        let second = sink(&directory);
        assert_eq!(second.arrived(), 6, "a daemon that follows asks for the rest of the line again");
    }

    #[tokio::test]
    async fn stream_that_is_given_up_writes_what_came() {
        let directory = tempfile::tempdir().unwrap();
        let mut sink = sink(&directory);
        sink.take(b"no end").unwrap();
        let (give_up, given_up) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let _ = given_up.await;
            sink.finish();
        });
        assert!(!Carried { task, give_up }.finish(Duration::ZERO).await);
        let log = std::fs::read_to_string(directory.path().join("0.log")).unwrap();
        assert!(log.ends_with(" stdout F no end\n"), "{log}");
    }

    #[test]
    fn line_cut_by_a_break_comes_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut sink = sink(&directory);
        let arrived = sink.take(b"a\nhal").unwrap();
        sink.resume(arrived);
        sink.take(b"half\n").unwrap();
        sink.finish();
        let log = std::fs::read_to_string(directory.path().join("0.log")).unwrap();
        let content: Vec<_> = log.lines().map(|l| l.rsplit(' ').next().unwrap()).collect();
        assert_eq!(content, ["a", "half"]);
    }
}
