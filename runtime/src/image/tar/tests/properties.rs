//! What holds for any archive: reading ends, stays within its bounds and loses nothing. Any bytes, and archives of random
//! entries in random layouts.

use super::super::build::{Fields, Layout, end, long_link, long_name, padded, pax};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// Reads an archive of any bytes as far as it goes. Holes may be terabytes, so content is only begun.
fn exhaust(bytes: &[u8]) {
    let mut archive = Archive::new(bytes);
    let mut buffer = [0; 700];
    let mut entries = 0;
    while let Ok(Some(entry)) = archive.next() {
        entries += 1;
        assert!(entries <= bytes.len() / 512);
        let sizes = entry.attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        assert!(entry.name.len() + entry.link.len() + sizes <= bytes.len() + 1);
        let mut read = 0;
        for _ in 0..20 {
            match archive.read(&mut buffer) {
                Ok(0) => {
                    assert_eq!(read, entry.size);
                    break;
                }
                Ok(more) => read += more as u64,
                Err(_) => break,
            }
        }
    }
    assert!(archive.position() <= bytes.len() as u64);
    archive.finish().unwrap();
}

/// An entry, and how the archive says it.
#[derive(Debug, Clone)]
struct Written {
    entry: Entry,
    content: Vec<u8>,
    layout: Layout,
    long_by_pax: bool,
}

fn text(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(1u8.., 1..longest)
}

fn written() -> impl Strategy<Value = Written> {
    let kind = prop::sample::select(vec![
        Kind::File,
        Kind::HardLink,
        Kind::SymbolicLink,
        Kind::CharacterDevice,
        Kind::BlockDevice,
        Kind::Directory,
        Kind::Fifo,
        Kind::Other(b'Z'),
    ]);
    let layout = prop::sample::select(vec![Layout::Ustar, Layout::Gnu, Layout::Star]);
    let owner = (0..1i64 << 40, -5..1i64 << 20);
    let time = (-1i64 << 40..1 << 40, 0..1_000_000_000u32);
    let attributes = prop::collection::btree_map("[a-z.]{1,20}", vec(any::<u8>(), 0..50), 0..4);
    let content = vec(any::<u8>(), 0..2000);
    let texts = (text(300), text(300), any::<bool>());
    (kind, layout, owner, time, 0..0o10_000u32, (0..1000u64, 0..1000u64), attributes, content, texts)
        .prop_map(
            |(kind, layout, (uid, gid), (seconds, nanoseconds), mode, device, attributes, content, texts)| {
                let content = if matches!(kind, Kind::File | Kind::Other(_)) { content } else { Vec::new() };
                let entry = Entry {
                    kind,
                    mode,
                    uid,
                    gid,
                    mtime: Time { seconds, nanoseconds },
                    size: content.len() as u64,
                    device,
                    name: texts.0,
                    link: texts.1,
                    attributes: attributes
                        .into_iter()
                        .map(|(name, value)| (name.into_bytes(), value))
                        .collect(),
                };
                Written { entry, content, layout, long_by_pax: texts.2 }
            },
        )
}

/// Writes time and attributes as pax does, names by one of the two ways, numbers in base 256 where they need it.
fn write(written: &Written) -> Vec<u8> {
    let Written { entry, content, layout, long_by_pax } = written;
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = entry
        .attributes
        .iter()
        .map(|(name, value)| ([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()))
        .collect();
    records.push((b"mtime".to_vec(), pax_time(entry.mtime).into_bytes()));
    let mut bytes = Vec::new();
    if *long_by_pax {
        records.push((b"path".to_vec(), entry.name.clone()));
        records.push((b"linkpath".to_vec(), entry.link.clone()));
    } else {
        bytes.extend([long_name(&entry.name), long_link(&entry.link)].concat());
    }
    bytes.extend(pax(&records));
    let byte = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::SymbolicLink => b'2',
        Kind::CharacterDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
        Kind::Other(byte) => byte,
    };
    let (major, minor) = (entry.device.0.cast_signed(), entry.device.1.cast_signed());
    let fields =
        Fields::new(byte, "short").layout(*layout).mode(entry.mode.into()).owner(entry.uid, entry.gid);
    bytes.extend(fields.device(major, minor).with(content));
    bytes
}

fn pax_time(time: Time) -> String {
    let Time { seconds, nanoseconds } = time;
    if seconds < 0 && nanoseconds > 0 {
        let whole = -(seconds + 1);
        return format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

proptest! {
    #[test]
    fn archives_read_back_equal(entries in vec(written(), 0..6)) {
        let parts: Vec<_> = entries.iter().map(write).collect();
        let read = read_all(end(&parts).as_slice()).unwrap();
        let expected: Vec<_> = entries.into_iter().map(|written| (written.entry, written.content)).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..4000)) {
        exhaust(&bytes);
    }

    #[test]
    fn any_header_fields_are_read_or_refused(
        blocks in vec((any::<u8>(), vec((0usize..500, vec(any::<u8>(), 1..12)), 0..6), vec(any::<u8>(), 0..700)), 1..6),
    ) {
        let kinds = b"01234567xgLKS\0VZ";
        let parts = blocks.into_iter().map(|(kind, places, content)| {
            let fields = Fields::new(kinds[usize::from(kind) % kinds.len()], "f").layout(Layout::Gnu).size(content.len() as i64);
            let fields = places.into_iter().fold(fields, |fields, (at, bytes)| fields.bytes(at, &bytes));
            [fields.block(), padded(&content)].concat()
        });
        exhaust(&end(&parts.collect::<Vec<_>>()));
    }

    #[test]
    fn damaged_archives_are_read_or_refused(
        entries in vec(written(), 1..4),
        places in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = end(&entries.iter().map(write).collect::<Vec<_>>());
        for (place, byte) in places {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        exhaust(&bytes);
        exhaust(&bytes[..cut.index(bytes.len())]);
    }
}
