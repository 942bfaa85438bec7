//! Archives made by hand and by chance, read and compared. `entries` has the archive's ends and its content.

mod entries;
mod extensions;
mod headers;
mod properties;
mod sparse;

use super::build::{end, file, pax};
use super::*;
use std::io::Read;

/// Reads all entries with their content, in pieces of an odd size.
fn read_all(source: impl Read) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(source);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = Vec::new();
        let mut buffer = [0; 77];
        loop {
            match archive.read(&mut buffer)? {
                0 => break,
                read => content.extend_from_slice(&buffer[..read]),
            }
        }
        assert_eq!(content.len() as u64, entry.size);
        entries.push((entry, content));
    }
    assert!(archive.next()?.is_none());
    Ok(entries)
}

fn only(bytes: &[u8]) -> (Entry, Vec<u8>) {
    let mut entries = read_all(bytes).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn error(bytes: &[u8]) -> TarError {
    read_all(bytes).unwrap_err()
}

fn names(bytes: &[u8]) -> Vec<Vec<u8>> {
    read_all(bytes).unwrap().into_iter().map(|(entry, _)| entry.name).collect()
}

fn file_with(records: &[(&str, &str)]) -> Vec<u8> {
    end(&[pax(records), file("ustar", "")])
}

fn seconds(seconds: i64, nanoseconds: u32) -> Time {
    Time { seconds, nanoseconds }
}
