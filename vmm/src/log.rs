//! The sandbox's log: standard error, one line per event, with the milliseconds since the process began.
//!
//! The daemon gives a file of a fixed size as standard error and quotes its end. The file is mapped and the descriptor let go
//! of: then nothing that this process does can make it longer. The guest can cause events, so the log has a budget: once it is
//! spent, only the final report is still written. By hand, standard error may be anything else, which is written to as it is.

use std::{
    fmt,
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Instant,
};

use isopod_protocols::vmm::LOG_BYTES;

use crate::{console_log, sys};

/// Bytes of ordinary lines.
const BUDGET: usize = 64 * 1024;
/// Bytes of the file that are kept for the final report.
const KEPT_FREE: usize = console_log::CAPACITY + 4096;

static BEGIN: OnceLock<Instant> = OnceLock::new();
static SPENT: AtomicUsize = AtomicUsize::new(0);
/// Absent where standard error is no file of the log's size.
static FILE: OnceLock<LogFile> = OnceLock::new();

/// Starts the clock of the log and takes its file over. Called first of all.
pub fn begin() {
    BEGIN.get_or_init(Instant::now);
    // Without the file, and where it cannot be mapped, the log goes to standard error.
    if let Ok(Some(file)) = take_over() {
        FILE.get_or_init(|| file);
    }
}

/// Maps the file behind standard error, and puts standard output in its place.
fn take_over() -> io::Result<Option<LogFile>> {
    let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let mapped = LogFile::map(&file)?;
    if mapped.is_some() {
        nix::unistd::dup2_stderr(io::stdout())?;
    }
    Ok(mapped)
}

/// Writes one event, unless the budget is spent.
pub fn line(event: impl fmt::Display) {
    let line = format_line(&event.to_string());
    let spent = SPENT.fetch_add(line.len(), Ordering::Relaxed);
    if spent.saturating_add(line.len()) <= BUDGET {
        write(&line, KEPT_FREE);
    } else if spent <= BUDGET {
        write(&format_line("log budget spent: only the end will be told"), KEPT_FREE);
    }
}

/// Writes the last words: why the process ends and, after an abnormal end, the tail of the guest's console.
pub fn last_words(reason: impl fmt::Display, console: Option<&str>) {
    write(&format_line(&format!("end: {reason}")), 0);
    if let Some(text) = console {
        write(&format!("--- guest console ---\n{}\n", text.trim_end()), 0);
    }
}

/// One event is one line, whatever its text holds.
fn format_line(event: &str) -> String {
    let elapsed = BEGIN.get_or_init(Instant::now).elapsed();
    let text: String = event.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("[{:>10.3}] {text}\n", elapsed.as_secs_f64() * 1e3)
}

/// A log that cannot be written must not end a pod, so failures have no consequence.
fn write(text: &str, kept_free: usize) {
    match FILE.get() {
        Some(file) => file.append(text, kept_free),
        None => drop(io::stderr().write_all(text.as_bytes())),
    }
}

/// A file of [`LOG_BYTES`], mapped. What was in it stays, as it may be the log of a VMM before this one.
struct LogFile {
    bytes: &'static [AtomicU8],
    /// Bytes of text.
    length: Mutex<usize>,
}

impl LogFile {
    fn map(file: &File) -> io::Result<Option<Self>> {
        let about = file.metadata()?;
        if !about.is_file() || about.len() != LOG_BYTES {
            return Ok(None);
        }
        let length = text_length(file)?;
        let bytes = sys::map_file(file.as_fd(), LOG_BYTES as usize)?;
        Ok(Some(Self { bytes, length: Mutex::new(length) }))
    }

    /// Adds what fits of `text`, with `kept_free` bytes left over.
    fn append(&self, text: &str, kept_free: usize) {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.bytes.len().saturating_sub(kept_free).saturating_sub(*length);
        let text = &text.as_bytes()[..text.len().min(room)];
        let place = &self.bytes[*length..*length + text.len()];
        if sys::can_be_written(place) {
            place.iter().zip(text).for_each(|(place, byte)| place.store(*byte, Ordering::Relaxed));
            *length += text.len();
        }
    }
}

/// Where the zeroes begin. Read, not mapped: looking at a hole of a memory file through a mapping fills it.
fn text_length(file: &File) -> io::Result<usize> {
    const PIECE: usize = 4096;
    let mut piece = [0; PIECE];
    for start in (0..LOG_BYTES as usize).step_by(PIECE) {
        file.read_exact_at(&mut piece, start as u64)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            return Ok(start + end);
        }
    }
    Ok(LOG_BYTES as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized_file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LOG_BYTES).unwrap();
        file
    }

    fn text_of(file: &File) -> String {
        let mut bytes = vec![0; LOG_BYTES as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap().trim_end_matches('\0').to_owned()
    }

    #[test]
    fn event_with_line_breaks_stays_one_line() {
        let line = format_line("a\nb\rc");
        assert!(line.ends_with("a b c\n"));
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn log_stays_as_long_as_its_file_and_has_its_last_words() {
        let file = sized_file();
        let log = LogFile::map(&file).unwrap().unwrap();
        for _ in 0..10_000 {
            log.append("a line that a guest has caused, again and again\n", KEPT_FREE);
        }
        log.append("end: ", 0);
        log.append(&"x".repeat(2 * LOG_BYTES as usize), 0);
        let text = text_of(&file);
        assert_eq!(file.metadata().unwrap().len(), LOG_BYTES);
        assert_eq!(text.len() as u64, LOG_BYTES);
        assert_eq!(text.find("end: ").unwrap(), LOG_BYTES as usize - KEPT_FREE);
    }

    #[test]
    fn log_of_a_vmm_before_is_continued() {
        let file = sized_file();
        for text in ["one\n", "two\n", &"x".repeat(9000), "three\n"] {
            LogFile::map(&file).unwrap().unwrap().append(text, 0);
        }
        let text = text_of(&file);
        assert!(text.starts_with("one\ntwo\nxxx") && text.ends_with("xthree\n"), "{} bytes", text.len());
    }

    #[test]
    fn other_files_are_left_to_standard_error() {
        let file = sized_file();
        file.set_len(LOG_BYTES - 1).unwrap();
        assert!(LogFile::map(&file).unwrap().is_none());
        assert!(LogFile::map(&File::open("/dev/null").unwrap()).unwrap().is_none());
    }
}
