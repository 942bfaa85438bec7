//! The sandbox's log: standard error, one line per event, with the milliseconds since the process began.
//!
//! The daemon gives a file as standard error and quotes its end. The guest can cause events, so the log has a budget:
//! once it is spent, only the final report is still written.

use std::{
    fmt,
    io::Write,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Bytes of ordinary lines.
const BUDGET: usize = 64 * 1024;

static BEGIN: OnceLock<Instant> = OnceLock::new();
static SPENT: AtomicUsize = AtomicUsize::new(0);

/// Starts the clock of the log. Called first of all.
pub fn begin() {
    BEGIN.get_or_init(Instant::now);
}

/// Writes one event, unless the budget is spent.
pub fn line(event: impl fmt::Display) {
    let line = format_line(&event.to_string());
    let spent = SPENT.fetch_add(line.len(), Ordering::Relaxed);
    if spent + line.len() <= BUDGET {
        write(&line);
    } else if spent <= BUDGET {
        write(&format_line("log budget spent: only the end will be told"));
    }
}

/// Writes the last words: why the process ends and, after an abnormal end, the tail of the guest's console.
pub fn last_words(reason: impl fmt::Display, console: Option<&str>) {
    write(&format_line(&format!("end: {reason}")));
    if let Some(text) = console {
        write(&format!("--- guest console ---\n{}\n", text.trim_end()));
    }
}

/// One event is one line, whatever its text holds.
fn format_line(event: &str) -> String {
    let elapsed = BEGIN.get_or_init(Instant::now).elapsed();
    let text: String = event.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("[{:>10.3}] {text}\n", elapsed.as_secs_f64() * 1e3)
}

/// A log that cannot be written must not end a pod, so failures have no consequence.
fn write(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_with_line_breaks_stays_one_line() {
        let line = format_line("a\nb\rc");
        assert!(line.ends_with("a b c\n"));
        assert_eq!(line.matches('\n').count(), 1);
    }
}
