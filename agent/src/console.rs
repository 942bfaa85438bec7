//! What the agent says to the outside while no stream is open: short lines in the kernel's log.
//!
//! The kernel log and not `/dev/console`, because its lines carry the time, are kept in order with the kernel's own, and
//! reach whatever console the VMM gave. The host quotes the console's last lines in its errors, so every line must tell
//! something that a person can act on. Errors are printed even with `quiet`; the rest only where `loglevel` asks for it.

use std::fmt::Arguments;
use std::io::Write;

/// Longest line, in bytes: the kernel refuses records of 1 KiB and more.
const MAX_LINE: usize = 900;

/// Severity, as syslog numbers it.
#[derive(Debug, Clone, Copy)]
pub enum Level {
    /// The guest cannot go on.
    Critical = 2,
    /// Something asked for could not be done.
    Error = 3,
    /// Worth knowing once per VM or container.
    Info = 6,
    /// For those who look for lost time.
    Debug = 7,
}

/// Writes one line. Never fails: there is nobody to tell.
pub fn write(level: Level, message: Arguments<'_>) {
    let line = line(level, &message.to_string());
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// One record of the kernel log: a priority, our name, and the message on one line of bounded length.
fn line(level: Level, message: &str) -> String {
    let one_line: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_LINE / 4).collect();
    format!("<{}>isopod-agent: {one_line}\n", level as u8)
}

/// Something asked for could not be done.
macro_rules! error {
    ($($argument:tt)*) => { $crate::console::write($crate::console::Level::Error, format_args!($($argument)*)) };
}

/// Worth knowing once per VM or container.
macro_rules! info {
    ($($argument:tt)*) => { $crate::console::write($crate::console::Level::Info, format_args!($($argument)*)) };
}

/// For those who look for lost time.
macro_rules! debug {
    ($($argument:tt)*) => { $crate::console::write($crate::console::Level::Debug, format_args!($($argument)*)) };
}

pub(crate) use {debug, error, info};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_several_lines_becomes_one_record() {
        assert_eq!(line(Level::Error, "a\nb\r<0>c"), "<3>isopod-agent: a b <0>c\n");
    }

    #[test]
    fn long_message_stays_below_the_kernels_limit() {
        assert!(line(Level::Critical, &"ä€😀".repeat(1000)).len() < 1000);
    }
}
