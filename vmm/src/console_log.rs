//! The last bytes that the guest wrote to its console, for error reports and the `Console` request.

use std::{collections::VecDeque, sync::Mutex};

/// Bytes kept.
pub const CAPACITY: usize = 16 * 1024;

/// A bounded record of console output.
#[derive(Default)]
pub struct ConsoleLog(Mutex<VecDeque<u8>>);

impl ConsoleLog {
    /// Adds what the guest wrote; the oldest bytes make room.
    pub fn append(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().expect("nobody panics with this lock");
        let bytes = &bytes[bytes.len().saturating_sub(CAPACITY)..];
        let surplus = (kept.len() + bytes.len()).saturating_sub(CAPACITY);
        kept.drain(..surplus);
        kept.extend(bytes);
    }

    /// What is kept, as text: bytes that are not printable ASCII, tab or newline are replaced by `?`.
    pub fn tail(&self) -> String {
        let kept = self.0.lock().expect("nobody panics with this lock");
        let printable = |byte: &u8| match *byte {
            b'\n' | b'\t' | b' '..=b'~' => Some(char::from(*byte)),
            b'\r' => None,
            _ => Some('?'),
        };
        kept.iter().filter_map(printable).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_bytes_make_room() {
        let log = ConsoleLog::default();
        log.append(b"old");
        log.append(&[b'x'; CAPACITY - 1]);
        assert_eq!(log.tail().len(), CAPACITY);
        assert!(log.tail().starts_with("dx"));
        log.append(&[b'y'; CAPACITY + 5]);
        assert_eq!(log.tail(), "y".repeat(CAPACITY));
    }

    #[test]
    fn unprintable_bytes_are_replaced() {
        let log = ConsoleLog::default();
        log.append(b"a\x1b[1m\xff\tb\r\n");
        assert_eq!(log.tail(), "a?[1m?\tb\n");
    }
}
