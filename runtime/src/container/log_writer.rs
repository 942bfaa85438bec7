//! Writes one stream of a container to its log, on threads that may block: a disk that takes no writes holds
//! up the containers that log to it, and never the threads that serve calls.
//!
//! ```text
//!   stream -> one chunk -> jobs on threads -> log file, then position file -> acknowledged to the agent
//! ```
//!
//! Called by `output`. The next chunk is read from the stream when the one before has been written. What the
//! log does not take stays in the guest, where the stream's window fills and the process waits: a container
//! that floods slows itself down, and a stream holds at most one chunk in this process.
//!
//! Pods share the threads: one has no more than [`POD_SEATS`] jobs at a time, however many containers it has,
//! and a job that has written [`TURN`] bytes leaves its seat to those who wait.
//!
//! How far a stream has come is kept in a file of 8 bytes, so that a daemon that was killed goes on where it
//! was: bytes may be in the log twice if it died between writing them and noting it, and are never missing.

use super::log::Lines;
use super::log_file::LogFile;
use super::stdio::Sink;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

/// Jobs of all streams that write at the same time; others wait for their turn, in order. It keeps a disk
/// that hangs from taking all blocking threads, which pulls and pod starts need too.
const SEATS: usize = 32;

static WRITING: Semaphore = Semaphore::const_new(SEATS);

/// Jobs of one pod's streams that write, or wait for a seat, at the same time.
const POD_SEATS: usize = 2;

/// Bytes of records that a job writes before it leaves its seat, and about 190 KiB more at most: those of a
/// piece.
const TURN: usize = 256 * 1024;

/// Bytes of a chunk whose records are made at once: of empty lines, records are 46 times as long.
const PIECE: usize = 4 * 1024;

/// The seats of one pod: taken before one of those of all, so that a pod whose disk hangs waits for itself.
#[derive(Clone)]
pub struct PodSeats(Arc<Semaphore>);

impl Default for PodSeats {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(POD_SEATS)))
    }
}

impl PodSeats {
    /// Waits for a seat.
    async fn take(&self) -> io::Result<Seat> {
        let of_pod = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let of_all = WRITING.acquire().await.map_err(io::Error::other)?;
        Ok(Seat { _of_pod: of_pod, _of_all: of_all })
    }
}

/// Given up when it is dropped.
struct Seat {
    _of_pod: OwnedSemaphorePermit,
    _of_all: SemaphorePermit<'static>,
}

/// What a job leaves.
struct Turn {
    /// What it had no time for.
    rest: Vec<u8>,
    /// Bytes of the stream that are in the log.
    arrived: io::Result<u64>,
}

/// Writes one stream. Dropped, it leaves a job that is under way to end by itself.
pub struct LogWriter {
    /// Used by one job at a time, and between jobs: nobody ever waits for it.
    sink: Arc<Mutex<LogSink>>,
    seats: PodSeats,
    /// Read from the stream, and in no job yet, or not any more.
    waiting: Vec<u8>,
    /// The job that is under way, also after whoever waited for it was dropped.
    job: Option<JoinHandle<Turn>>,
}

impl LogWriter {
    /// For the stream `stdout` or `stderr`. `position` is the file that says how far an earlier daemon came.
    /// Without a log the bytes are dropped, so that the container is not held up.
    ///
    /// # Errors
    /// Where the position cannot be read.
    pub fn open(
        stream: &'static str,
        log: Option<Arc<LogFile>>,
        seats: PodSeats,
        position: &Path,
    ) -> io::Result<Self> {
        let sink = Arc::new(Mutex::new(LogSink::open(stream, log, position)?));
        Ok(Self { sink, seats, waiting: Vec::new(), job: None })
    }

    /// The first byte to ask the agent for. What was held back for the end of its line comes again, and so
    /// does what no job has taken.
    pub async fn resume(&mut self) -> u64 {
        // How it ended was told to whoever began it.
        let _ = self.settle().await;
        self.waiting.clear();
        lock(&self.sink).resume()
    }

    /// Writes what was read and is not in the log yet; whatever has no line's end will get none any more.
    pub async fn finish(&mut self) {
        if let Err(error) = self.write(LogSink::finish).await {
            tracing::warn!(%error, "position of a finished stream is not kept");
        }
    }

    /// Writes what waits, after the job that is under way, by as many jobs as it takes, and then does `last`.
    async fn write(&mut self, last: fn(&mut LogSink) -> io::Result<u64>) -> io::Result<u64> {
        let _ = self.settle().await;
        loop {
            let seat = self.seats.take().await?;
            // No wait from here to the job's begin: a caller that is dropped loses nothing.
            let (sink, bytes) = (Arc::clone(&self.sink), std::mem::take(&mut self.waiting));
            self.job = Some(tokio::task::spawn_blocking(move || {
                let _seat = seat;
                lock(&sink).turn(bytes, last)
            }));
            let arrived = self.settle().await?;
            if self.waiting.is_empty() {
                return Ok(arrived);
            }
        }
    }

    /// Waits for the job that is under way, if there is one. What it leaves waits before all that came later.
    async fn settle(&mut self) -> io::Result<u64> {
        let Some(job) = &mut self.job else { return Ok(0) };
        let outcome = job.await;
        self.job = None;
        let Turn { mut rest, arrived } = outcome.map_err(io::Error::other)?;
        rest.append(&mut self.waiting);
        self.waiting = rest;
        arrived
    }
}

impl Sink for LogWriter {
    async fn take(&mut self, bytes: Vec<u8>) -> io::Result<u64> {
        self.waiting.extend(bytes);
        self.write(LogSink::note).await
    }
}

fn lock(sink: &Mutex<LogSink>) -> MutexGuard<'_, LogSink> {
    // A sink whose job panicked has at worst lines that come twice.
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns a stream's bytes into records of the log, and notes how many have arrived there. Its methods may
/// block.
struct LogSink {
    lines: Lines,
    received: u64,
    /// What the position file says.
    noted: u64,
    log: Option<Arc<LogFile>>,
    position: File,
    failing: bool,
}

impl LogSink {
    fn open(stream: &'static str, log: Option<Arc<LogFile>>, position: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let position =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(position)?;
        let mut bytes = [0; 8];
        let received = match position.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { lines: Lines::new(stream), received, noted: received, log, position, failing: false })
    }

    /// Bytes of the stream that are in the log.
    fn arrived(&self) -> u64 {
        self.received.saturating_sub(self.lines.pending() as u64)
    }

    fn resume(&mut self) -> u64 {
        self.received = self.arrived();
        self.lines.clear();
        self.received
    }

    /// Writes the records of `bytes`, or of as many of them as a turn is long; once there are none left, does
    /// `last`.
    fn turn(&mut self, mut bytes: Vec<u8>, last: fn(&mut Self) -> io::Result<u64>) -> Turn {
        let (mut taken, mut written) = (0, 0);
        for piece in bytes.chunks(PIECE) {
            if written >= TURN {
                return Turn { rest: bytes.split_off(taken), arrived: Ok(self.arrived()) };
            }
            let records = self.lines.feed(piece, SystemTime::now());
            self.received = self.received.saturating_add(piece.len() as u64);
            self.append(&records);
            (taken, written) = (taken + piece.len(), written + records.len());
        }
        Turn { rest: Vec::new(), arrived: last(self) }
    }

    fn append(&mut self, records: &[u8]) {
        let Some(log) = self.log.as_ref().filter(|_| !records.is_empty()) else { return };
        match log.append(records) {
            Ok(()) => self.failing = false,
            // A full disk must not stop the container: lines are lost, and that is said once.
            Err(error) if !self.failing => {
                tracing::error!(%error, "log lines are lost until it can be written again");
                self.failing = true;
            }
            Err(_) => {}
        }
    }

    /// Keeps how far the stream has come.
    fn note(&mut self) -> io::Result<u64> {
        let arrived = self.arrived();
        if arrived != self.noted {
            self.position.write_all_at(&arrived.to_le_bytes(), 0)?;
            self.noted = arrived;
        }
        Ok(arrived)
    }

    fn finish(&mut self) -> io::Result<u64> {
        let rest = self.lines.finish(SystemTime::now());
        self.append(&rest);
        self.note()
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_file::LogPath;
    use super::super::stdio::pump;
    use super::*;
    use std::io::{PipeReader, Read};
    use std::os::fd::OwnedFd;
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    /// More than any buffer between the guest and the log holds: those of two sockets, a pipe and a chunk.
    const FLOOD: usize = 4 << 20;

    fn writer(directory: &TempDir) -> LogWriter {
        let path = LogPath::new(directory.path(), Path::new("0.log")).unwrap();
        let log = Arc::new(LogFile::open(path).unwrap());
        let position = directory.path().join("position");
        LogWriter::open("stdout", Some(log), PodSeats::default(), &position).unwrap()
    }

    /// A writer whose log takes only what the test reads from the other end of a pipe.
    fn slow_writer(directory: &TempDir) -> (PipeReader, LogWriter) {
        slow_writer_of(directory, &PodSeats::default())
    }

    fn slow_writer_of(directory: &TempDir, seats: &PodSeats) -> (PipeReader, LogWriter) {
        let (reader, log) = io::pipe().unwrap();
        let log = LogFile::for_test(OwnedFd::from(log));
        let position = directory.path().join("position");
        (reader, LogWriter::open("stdout", Some(log), seats.clone(), &position).unwrap())
    }

    /// The lines in a log, without their heads.
    fn content(log: &str) -> Vec<&str> {
        log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect()
    }

    /// Reads a log to its end on a thread of its own.
    async fn read_all(mut reader: PipeReader) -> String {
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        read.await.unwrap()
    }

    #[tokio::test]
    async fn only_what_is_in_the_log_counts_as_arrived() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = writer(&directory);
        assert_eq!(first.take(b"whole\nhal".into()).await.unwrap(), 6);
        drop(first);
        let arrived = writer(&directory).resume().await;
        assert_eq!(arrived, 6, "a daemon that follows asks for the rest of the line again");
    }

    #[tokio::test]
    async fn line_cut_by_a_break_comes_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(&directory);
        let arrived = writer.take(b"a\nhal".into()).await.unwrap();
        assert_eq!(writer.resume().await, arrived);
        writer.take(b"half\n".into()).await.unwrap();
        writer.finish().await;
        let log = std::fs::read_to_string(directory.path().join("0.log")).unwrap();
        assert_eq!(content(&log), ["a", "half"]);
    }

    /// On one thread: a write that blocks it would stop the test for ever.
    #[tokio::test]
    async fn log_that_takes_nothing_slows_the_guest_and_blocks_no_other_task() {
        let directory = tempfile::tempdir().unwrap();
        let (reader, mut writer) = slow_writer(&directory);
        let (mut host, mut guest) = UnixStream::pair().unwrap();
        let pumped = tokio::spawn(async move {
            pump(&mut host, &mut writer).await.unwrap();
            writer.finish().await;
        });
        let line = [b"x".repeat(1023), b"\n".into()].concat();
        let (mut accepted, mut ends) = (0, 0);
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), guest.write(&line)).await {
            let written = written.unwrap();
            accepted += written;
            ends += usize::from(written == line.len());
            assert!(accepted < FLOOD, "the guest is not slowed down");
        }
        let log = tokio::spawn(read_all(reader));
        let (mut acknowledgements, mut flood) = guest.into_split();
        flood.shutdown().await.unwrap();
        let mut last = 0;
        while let Ok(arrived) = acknowledgements.read_u64_le().await {
            assert!(arrived >= last && arrived <= accepted as u64);
            last = arrived;
        }
        pumped.await.unwrap();
        let written: usize = content(&log.await.unwrap()).iter().map(|line| line.len()).sum();
        assert_eq!(written, accepted - ends, "all that the guest could write is in the log");
    }

    #[tokio::test]
    async fn chunks_whose_writing_nobody_waits_for_any_more_are_in_the_log_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let (reader, mut writer) = slow_writer(&directory);
        let short = Duration::from_millis(50);
        // More than the pipe holds: its job is under way when the waiting for it ends.
        let first = b"1\n".repeat(40_000);
        assert!(tokio::time::timeout(short, writer.take(first)).await.is_err());
        assert!(tokio::time::timeout(short, writer.take(b"2\nhalf".into())).await.is_err());
        let log = tokio::spawn(read_all(reader));
        writer.finish().await;
        drop(writer);
        let log = log.await.unwrap();
        let lines = content(&log);
        assert_eq!(lines.len(), 40_002);
        assert_eq!((lines[39_999], &lines[40_000..]), ("1", &["2", "half"][..]));
    }

    #[tokio::test]
    async fn chunk_that_waits_for_a_seat_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(&directory);
        let seats = WRITING.acquire_many(SEATS as u32).await.unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(20), writer.take(b"late\n".into())).await.is_err()
        );
        drop(seats);
        writer.finish().await;
        let log = std::fs::read_to_string(directory.path().join("0.log")).unwrap();
        assert_eq!(content(&log), ["late"]);
    }

    #[tokio::test]
    async fn pod_with_many_streams_leaves_seats_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let pod = PodSeats::default();
        let mut readers = Vec::new();
        let streams = (0..SEATS + 8).map(|_| {
            let (reader, mut writer) = slow_writer_of(&directory, &pod);
            readers.push(reader);
            // More records than a pipe holds.
            tokio::spawn(async move { writer.take(b"\n".repeat(40_000)).await })
        });
        let streams: Vec<_> = streams.collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(pod.0.available_permits(), 0, "all of the pod's seats are taken");
        let mut other = writer(&directory);
        let written = tokio::time::timeout(Duration::from_secs(5), other.take(b"line\n".into())).await;
        assert_eq!(written.expect("another pod has no seat").unwrap(), 5);
        streams.iter().for_each(JoinHandle::abort);
        // The jobs end: nobody reads any more.
        drop(readers);
    }

    #[tokio::test]
    async fn flood_of_empty_lines_is_written_in_turns_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(&directory);
        let flood = b"\n".repeat(4 * PIECE);
        let turn = lock(&writer.sink).turn(flood.clone(), LogSink::note);
        assert_eq!(turn.rest.len(), 2 * PIECE, "a job goes on for no longer than its turn");
        assert_eq!(std::fs::metadata(directory.path().join("position")).unwrap().len(), 0);
        assert_eq!(writer.take(turn.rest).await.unwrap(), flood.len() as u64);
        assert_eq!(writer.take(flood.clone()).await.unwrap(), 2 * flood.len() as u64);
        let log = std::fs::read_to_string(directory.path().join("0.log")).unwrap();
        assert_eq!(content(&log).len(), 2 * flood.len());
    }

    #[tokio::test]
    async fn without_a_log_bytes_are_taken_and_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let position = directory.path().join("position");
        let mut writer = LogWriter::open("stderr", None, PodSeats::default(), &position).unwrap();
        assert_eq!(writer.take(b"a\nb\n".into()).await.unwrap(), 4);
        assert_eq!(std::fs::read(position).unwrap(), 4u64.to_le_bytes());
    }
}
