//! The CRI's log format: a record for each line of a container's output, with time, stream and whether it is
//! whole.
//!
//! ```text
//! 2026-08-20T10:00:00.123456789Z stdout F a whole line
//! 2026-08-20T10:00:00.223456789Z stderr P a piece of a line that is too long, whose rest follows
//! ```
//!
//! A stream's last line is whole, also without a line end: whoever collects logs joins `P` with the line that follows, and
//! none does.
//!
//! Called by `log_writer` with what the agent sends; pure bookkeeping, no I/O. What has no line's end yet
//! gives no record, and so is not acknowledged to the agent: if this process dies, it comes again.
//!
//! Source: kubernetes/design-proposals, kubelet-cri-logging.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest piece of a line, bytes; a longer line is cut into pieces.
pub const MAX_LINE: usize = 16 * 1024;

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

    /// Takes bytes as they come; gives the records of the lines they complete. [`Lines::pending`] of them are
    /// held back. A record is up to 50 bytes longer than its line, which may be empty: bound the bytes of one
    /// call.
    pub fn feed(&mut self, mut bytes: &[u8], now: SystemTime) -> Vec<u8> {
        let mut log = Vec::with_capacity(bytes.len() + 64);
        let head = self.head(now);
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            match bytes.iter().take(room + 1).position(|&b| b == b'\n') {
                Some(end) => {
                    self.pending.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    self.write(&mut log, &head, "F ");
                }
                None if bytes.len() > room => {
                    self.pending.extend_from_slice(&bytes[..room]);
                    bytes = &bytes[room..];
                    self.write(&mut log, &head, "P ");
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
            self.write(&mut log, &self.head(now), "F ");
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

    fn head(&self, now: SystemTime) -> String {
        format!("{} {} ", timestamp(now), self.stream)
    }

    fn write(&mut self, log: &mut Vec<u8>, head: &str, tag: &str) {
        log.extend_from_slice(head.as_bytes());
        log.extend_from_slice(tag.as_bytes());
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

    /// Streams of any bytes in any chunks, with many line ends and with lines longer than a piece.
    fn streams() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![Just(b'\n'), any::<u8>()];
        let text = proptest::collection::vec(byte, 0..3_000);
        let long = (0..2 * MAX_LINE + 3).prop_map(|length| vec![b'x'; length]);
        let forged = Just(b"\n1970-01-01T00:00:00.000000000Z stderr F forged".to_vec());
        proptest::collection::vec(prop_oneof![text, long, forged], 0..6)
    }

    proptest! {
        #[test]
        fn content_survives_whatever_the_chunks(chunks in streams()) {
            let mut lines = Lines::new("stdout");
            let mut log = Vec::new();
            for chunk in &chunks {
                log.extend(lines.feed(chunk, NOW));
                prop_assert!(lines.pending() <= MAX_LINE);
            }
            log.extend(lines.finish(NOW));
            let mut content = Vec::new();
            for record in log.split_inclusive(|&b| b == b'\n') {
                // Whatever the process writes, it is behind a head of ours.
                let (head, line) = record.split_at("1970-01-01T00:00:00.000000000Z stdout X ".len());
                prop_assert!(head == &b"1970-01-01T00:00:00.000000000Z stdout F "[..]
                    || head == &b"1970-01-01T00:00:00.000000000Z stdout P "[..]);
                prop_assert!(line.len() <= MAX_LINE + 1);
                content.extend_from_slice(&line[..line.len() - 1]);
                if head.ends_with(b"F ") {
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
