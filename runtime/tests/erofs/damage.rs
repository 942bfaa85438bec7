//! Images with random damage: whatever they say, reading ends, soon and with little memory.

use crate::mkfs;
use crate::random::Random;
use crate::reader::{INLINE, SHARED, zoo};
use crate::tar::archive;
use crate::written::converted;
use isopod_runtime::image::erofs::Erofs;
use std::fs::{self, File};
use std::time::{Duration, Instant};

/// Reads all that an image offers, in bounds of its own, and returns how much that was.
fn walk(erofs: &Erofs) -> usize {
    let mut steps = 0;
    let mut waiting = Vec::from_iter(erofs.root().ok().map(|root| (0, root)));
    let mut buffer = vec![0; 5000];
    while let Some((depth, inode)) = waiting.pop() {
        steps += 1;
        let _ = erofs.attributes(&inode);
        let _ = erofs.read_link(&inode);
        for offset in [0, 4000, inode.size.saturating_sub(1), u64::MAX] {
            let _ = erofs.read_at(&inode, offset, &mut buffer);
        }
        for name in [&b""[..], b"capable", b"long", &[0xFF; 255]] {
            let _ = erofs.lookup(&inode, name);
        }
        if depth < 4 && steps < 300 {
            let entries = erofs.entries(&inode).unwrap_or_default();
            waiting.extend(entries.into_iter().take(100).map(|(_, inode)| (depth + 1, inode)));
        }
    }
    steps
}

/// Largest memory that this process had so far, in KiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn damaged_images_are_read_in_bounded_time_and_memory() {
    let seed = Random::seed();
    println!("seed {seed}: set ISOPOD_SEED to repeat");
    let mut random = Random::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let before = peak_memory();
    let mut read = 0;
    let mut images = Vec::new();
    for arguments in [mkfs::LAYER, INLINE, SHARED] {
        mkfs::convert(&archive(&zoo()), arguments, &path).unwrap();
        images.push(fs::read(&path).unwrap());
    }
    fs::remove_file(&path).unwrap();
    assert!(converted(&zoo(), &path));
    images.push(fs::read(&path).unwrap());
    for whole in images {
        for _ in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(8) {
                damage(&mut bytes, &mut random);
            }
            fs::write(&path, &bytes).unwrap();
            let begun = Instant::now();
            if let Ok(erofs) = Erofs::open(File::open(&path).unwrap()) {
                read += walk(&erofs);
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it takes too long to read");
        }
    }
    assert!(read > 3_000, "only {read} inodes were read: the damage leaves nothing to test");
    let grown = peak_memory() - before;
    assert!(grown < 128 << 10, "reading took {grown} KiB");
}

/// Changes a byte, a number or a length, mostly where the image describes itself.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = match random.below(4) {
        0 => 1024 + random.below(128),
        1 => random.below(bytes.len()),
        // inodes, attributes and directories begin in the block behind the superblock
        _ => 1152 + random.below(bytes.len().min(24_576) - 1152),
    };
    let value = random.pick(&[0, 1, 2, 12, 255, 4096, 0x7FFF_FFFF, u64::from(u32::MAX), u64::MAX, 1 << 63]);
    let width = random.pick(&[1, 1, 2, 4, 8]);
    match random.below(20) {
        0 => bytes.truncate(at),
        1..8 => bytes[at] = random.next().to_le_bytes()[0],
        _ => {
            let end = bytes.len().min(at + width);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
    }
    // what is left must not be empty for the next damage
    bytes.resize(bytes.len().max(2048), 0);
}
