//! The environment of a container's processes, as it lies in the container's bundle: entries with a zero byte
//! after each, as the kernel shows them in /proc/PID/environ. Written by the agent, read by the one-shot
//! child for the first process and for each exec.

use super::message::Failure;
use std::collections::HashSet;
use std::path::Path;

/// The file's name in the bundle.
pub const FILE: &str = "environ";

/// The file's content. No entry holds a zero byte: they were checked.
pub fn encode(entries: &[Vec<u8>]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.iter().copied().chain([0])).collect()
}

/// The environment in a container's bundle.
pub fn read(bundle: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let content = std::fs::read(bundle.join(FILE))
        .map_err(|error| Failure::guest("the container's environment cannot be read", error))?;
    let entries = content.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    Ok(entries.map(<[u8]>::to_vec).collect())
}

/// Each name once: the last entry of a name stays, where it stands, as runc does it.
pub fn last_of_each_name(entries: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut seen = HashSet::new();
    let mut last = Vec::with_capacity(entries.len());
    for entry in entries.into_iter().rev() {
        let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
        if seen.insert(name) {
            last.push(entry);
        }
    }
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_byte_by_byte() {
        let bundle = tempfile::tempdir().unwrap();
        let entries = vec![b"A=\xff\n=".to_vec(), b"B=".to_vec()];
        std::fs::write(bundle.path().join(FILE), encode(&entries)).unwrap();
        assert_eq!(read(bundle.path()).unwrap(), entries);
        assert!(read(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn later_entry_of_a_name_wins() {
        let entries = ["A=1", "B=2", "A=3=4"].map(|entry| entry.as_bytes().to_vec()).to_vec();
        assert_eq!(last_of_each_name(entries), [b"B=2".to_vec(), b"A=3=4".to_vec()]);
    }
}
