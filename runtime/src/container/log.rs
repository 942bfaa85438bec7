//! Log files of containers in the CRI's format: a line for each line, with time, stream and whether it is whole.
//!
//! ```text
//! 2026-08-20T10:00:00.123456789Z stdout F a whole line
//! 2026-08-20T10:00:00.223456789Z stderr P a piece of a line that is too long, whose rest follows
//! ```
//!
//! A stream's last line is whole, also without a line end: whoever collects logs joins `P` with the line that follows, and
//! none does.
//!
//! Called by `stdio`, which feeds it what the agent sends. Both streams of a container write to one file, each write
//! whole. What has no line's end yet is not written, and so not acknowledged to the agent: if this process dies, it
//! comes again.
//!
//! Source: kubernetes/design-proposals, kubelet-cri-logging.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest piece of a line, bytes; a longer line is cut into pieces.
pub const MAX_LINE: usize = 16 * 1024;

/// A log file could not be opened or written.
#[derive(Debug, thiserror::Error)]
#[error("log file {path}: {source}")]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// The log file of one container, which its streams share.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens the file for appending, and makes it where it is missing.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Ok(Self { path: path.to_owned(), file: Mutex::new(open(path)?) })
    }

    /// Opens the path anew, after the file was renamed by whoever rotates logs.
    ///
    /// # Errors
    /// The old file goes on being written.
    pub fn reopen(&self) -> Result<(), LogError> {
        let file = open(&self.path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }

    /// Appends lines that [`Lines`] made.
    ///
    /// # Errors
    /// Where the file takes no more: a full disk, for instance.
    pub fn append(&self, lines: &[u8]) -> Result<(), LogError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(lines).map_err(|source| LogError { path: self.path.clone(), source })
    }
}

fn open(path: &Path) -> Result<File, LogError> {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map_err(|source| LogError { path: path.to_owned(), source })
}

/// Cuts the bytes of one stream into lines of the log.
#[derive(Debug)]
pub struct Lines {
    stream: &'static str,
    /// What came after the last line's end.
    pending: Vec<u8>,
}

impl Lines {
    /// For the stream of this name: `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes bytes as they come; gives the lines they complete. [`Lines::pending`] of them are held back.
    pub fn feed(&mut self, mut bytes: &[u8], now: SystemTime) -> Vec<u8> {
        let mut log = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            match bytes.iter().take(room + 1).position(|&b| b == b'\n') {
                Some(end) => {
                    self.pending.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    self.write(&mut log, 'F', now);
                }
                None if bytes.len() > room => {
                    self.pending.extend_from_slice(&bytes[..room]);
                    bytes = &bytes[room..];
                    self.write(&mut log, 'P', now);
                }
                None => {
                    self.pending.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
        log
    }

    /// The stream has ended: gives what had no line's end, as a whole line, since nothing of it follows.
    pub fn finish(&mut self, now: SystemTime) -> Vec<u8> {
        let mut log = Vec::new();
        if !self.pending.is_empty() {
            self.write(&mut log, 'F', now);
        }
        log
    }

    /// Forgets what was held back: it comes again.
    pub fn clear(&mut self) {
        self.pending.clear();
    }

    /// Bytes that are held back for the end of their line.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    fn write(&mut self, log: &mut Vec<u8>, tag: char, now: SystemTime) {
        log.extend_from_slice(format!("{} {} {tag} ", timestamp(now), self.stream).as_bytes());
        log.append(&mut self.pending);
        log.push(b'\n');
    }
}

/// A point in time as RFC 3339 with nanoseconds, UTC.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years begin in March here, so that
/// the leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let since_era = days + 719_468;
    let (era, day_of_era) = (since_era / 146_097, since_era % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    const NOW: SystemTime = UNIX_EPOCH;

    fn text(log: &[u8]) -> String {
        String::from_utf8(log.to_vec()).unwrap()
    }

    #[test]
    fn times_follow_the_calendar() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::new(seconds, 5));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.000000005Z");
    }

    #[test]
    fn line_without_an_end_waits_for_it() {
        let mut lines = Lines::new("stdout");
        assert_eq!(lines.feed(b"ab", NOW), b"");
        assert_eq!(lines.pending(), 2);
        assert_eq!(text(&lines.feed(b"c\nd", NOW)), "1970-01-01T00:00:00.000000000Z stdout F abc\n");
        assert_eq!(text(&lines.finish(NOW)), "1970-01-01T00:00:00.000000000Z stdout F d\n");
        assert_eq!(lines.finish(NOW), b"");
    }

    #[test]
    fn long_line_comes_in_pieces_and_its_end_is_whole() {
        let mut lines = Lines::new("stderr");
        let log = text(&lines.feed(format!("{}\n", "x".repeat(MAX_LINE + 3)).as_bytes(), NOW));
        let tags: Vec<_> = log.lines().map(|l| l.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "F"]);
        let mut unended = Lines::new("stderr");
        let mut log = text(&unended.feed("x".repeat(MAX_LINE + 1).as_bytes(), NOW));
        log += &text(&unended.finish(NOW));
        let tags: Vec<_> = log.lines().map(|l| l.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "F"], "nothing follows the last piece");
        let exact = text(&Lines::new("stderr").feed(format!("{}\n", "x".repeat(MAX_LINE)).as_bytes(), NOW));
        assert_eq!(exact.lines().count(), 1);
    }

    #[test]
    fn reopened_file_is_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let log = LogFile::open(&path).unwrap();
        log.append(b"one\n").unwrap();
        fs::rename(&path, directory.path().join("0.log.old")).unwrap();
        log.reopen().unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    proptest! {
        #[test]
        fn content_survives_whatever_the_chunks(chunks in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..20_000), 0..4)) {
            let mut lines = Lines::new("stdout");
            let mut log = Vec::new();
            for chunk in &chunks {
                log.extend(lines.feed(chunk, NOW));
            }
            log.extend(lines.finish(NOW));
            let prefix = "1970-01-01T00:00:00.000000000Z stdout X ".len();
            let mut content = Vec::new();
            for line in log.split_inclusive(|&b| b == b'\n') {
                content.extend_from_slice(&line[prefix..line.len() - 1]);
                if line[prefix - 2] == b'F' {
                    content.push(b'\n');
                }
            }
            let mut written = chunks.concat();
            // The last line has no end of its own, and is whole.
            if written.last().is_some_and(|&last| last != b'\n') {
                written.push(b'\n');
            }
            prop_assert_eq!(content, written);
        }
    }
}
