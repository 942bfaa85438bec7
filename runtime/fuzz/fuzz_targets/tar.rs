//! Any bytes as an archive. Each entry is read a little, as holes of sparse files may be terabytes.

#![no_main]

use isopod_runtime::image::tar::Archive;
use libfuzzer_sys::fuzz_target;

/// Smallest header: bounds the number of entries.
const BLOCK: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    let mut archive = Archive::new(bytes);
    let mut buffer = [0; 4096];
    let mut entries = 0;
    while let Ok(Some(entry)) = archive.next() {
        entries += 1;
        assert!(entries <= bytes.len() / BLOCK);
        let attributes = entry.attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        assert!(entry.name.len() + entry.link.len() + attributes <= bytes.len() + 1);
        assert!(entry.mode <= 0o7777 && entry.mtime.nanoseconds < 1_000_000_000);
        let mut read = 0;
        for _ in 0..64 {
            match archive.read(&mut buffer) {
                Ok(0) => {
                    assert_eq!(read, entry.size);
                    break;
                }
                Ok(more) => read += more as u64,
                Err(_) => break,
            }
        }
        assert!(read <= entry.size);
    }
    assert!(archive.position() <= bytes.len() as u64);
    archive.finish().expect("a slice can be read to its end");
});
