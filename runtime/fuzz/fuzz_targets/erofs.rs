//! Any bytes as an EROFS file: reading it ends, within bounds, whatever it says.

#![no_main]

use isopod_runtime::image::erofs::{Erofs, Inode};
use libfuzzer_sys::fuzz_target;
use std::io::Write;

/// Most inodes that are looked at: directories may hold each other.
const INODES: usize = 1000;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("room for a few kilobytes");
    let Ok(image) = Erofs::open(file) else { return };
    let Ok(root) = image.root() else { return };
    let mut todo: Vec<Inode> = vec![root];
    for _ in 0..INODES {
        let Some(inode) = todo.pop() else { return };
        let _ = (image.attributes(&inode), image.read_link(&inode));
        let _ = image.read_at(&inode, 0, &mut [0; 4096]);
        if let Ok(entries) = image.entries(&inode) {
            if let Some((name, _)) = entries.first() {
                let _ = image.lookup(&inode, name);
            }
            todo.extend(entries.into_iter().map(|(_, inode)| inode));
        }
    }
});
