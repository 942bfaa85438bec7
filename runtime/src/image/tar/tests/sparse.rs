//! Sparse files in all their encodings: the same file, and the same damage.

use super::super::build::{Fields, Layout, end, file, padded, pax, pax_records, symlink};
use super::*;

/// A file of 3000 bytes: `abc` at 0, `de` at 1000, nothing at 2000.
const RANGES: [(i64, i64); 3] = [(0, 3), (1000, 2), (2000, 0)];
const SIZE: i64 = 3000;
const DATA: &[u8] = b"abcde";

fn expected() -> Vec<u8> {
    let mut content = vec![0; 3000];
    content[..3].copy_from_slice(b"abc");
    content[1000..1002].copy_from_slice(b"de");
    content
}

/// The old GNU format: four ranges in the header, 21 in each block after it.
fn old(ranges: &[(i64, i64)], size: i64, data: &[u8]) -> Vec<u8> {
    let write = |at: usize, mut fields: Fields, ranges: &[(i64, i64)]| {
        for (index, (offset, length)) in ranges.iter().enumerate() {
            fields = fields.number(at + 24 * index, 12, *offset).number(at + 24 * index + 12, 12, *length);
        }
        fields
    };
    let (inside, beyond) = ranges.split_at(ranges.len().min(4));
    let header =
        Fields::new(b'S', "sparse").layout(Layout::Gnu).size(data.len() as i64).number(483, 12, size);
    let mut bytes = write(386, header.bytes(482, &[u8::from(!beyond.is_empty())]), inside).block();
    let mut blocks = beyond.chunks(21).peekable();
    while let Some(ranges) = blocks.next() {
        let mut block = vec![0; 512];
        for (index, (offset, length)) in ranges.iter().enumerate() {
            let entry = format!("{offset:011o}\0{length:011o}\0");
            block[24 * index..][..24].copy_from_slice(entry.as_bytes());
        }
        block[504] = u8::from(blocks.peek().is_some());
        bytes.extend(block);
    }
    [bytes, padded(data)].concat()
}

fn version_0_0(ranges: &[(i64, i64)], size: i64, data: &[u8]) -> Vec<u8> {
    let mut records =
        vec![("GNU.sparse.size", size.to_string()), ("GNU.sparse.numblocks", ranges.len().to_string())];
    for (offset, length) in ranges {
        records.push(("GNU.sparse.offset", offset.to_string()));
        records.push(("GNU.sparse.numbytes", length.to_string()));
    }
    [pax(&records), file("sparse", data)].concat()
}

fn version_0_1(ranges: &[(i64, i64)], size: i64, data: &[u8]) -> Vec<u8> {
    let map: Vec<_> = ranges.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
    let records = [
        ("GNU.sparse.name", "sparse".to_owned()),
        ("GNU.sparse.size", size.to_string()),
        ("GNU.sparse.numblocks", ranges.len().to_string()),
        ("GNU.sparse.map", map.join(",")),
    ];
    [pax(&records), file("GNUSparseFile.0/sparse", data)].concat()
}

fn version_1_0(ranges: &[(i64, i64)], size: i64, data: &[u8]) -> Vec<u8> {
    let records = [
        ("GNU.sparse.major", "1".to_owned()),
        ("GNU.sparse.minor", "0".to_owned()),
        ("GNU.sparse.name", "sparse".to_owned()),
        ("GNU.sparse.realsize", size.to_string()),
    ];
    let lines: String = ranges.iter().map(|(offset, length)| format!("{offset}\n{length}\n")).collect();
    let map = padded(format!("{}\n{lines}", ranges.len()).as_bytes());
    [pax(&records), file("GNUSparseFile.0/sparse", [map.as_slice(), data].concat())].concat()
}

type Encoding = fn(&[(i64, i64)], i64, &[u8]) -> Vec<u8>;

const ENCODINGS: [(&str, Encoding); 4] =
    [("old", old), ("0.0", version_0_0), ("0.1", version_0_1), ("1.0", version_1_0)];

#[test]
fn holes_are_zeros_in_every_encoding() {
    for (encoding, encode) in ENCODINGS {
        let bytes = end(&[encode(&RANGES, SIZE, DATA), file("next", "n")]);
        let entries = read_all(bytes.as_slice()).unwrap();
        let (entry, content) = &entries[0];
        assert_eq!((entry.name.as_slice(), entry.kind), (b"sparse".as_slice(), Kind::File), "{encoding}");
        assert_eq!((content, entries[1].1.as_slice()), (&expected(), b"n".as_slice()), "{encoding}");
    }
}

#[test]
fn files_without_data_and_files_without_holes_are_read() {
    for (encoding, encode) in ENCODINGS {
        let read = |ranges: &[(i64, i64)], size, data: &[u8]| {
            read_all(end(&[encode(ranges, size, data)]).as_slice()).unwrap().remove(0).1
        };
        assert_eq!(read(&[(600, 0)], 600, b""), vec![0; 600], "{encoding}");
        assert_eq!(read(&[(0, 5)], 5, DATA), DATA, "{encoding}");
        assert_eq!(read(&[(0, 2), (2, 3)], 5, DATA), DATA, "{encoding}");
        assert_eq!(read(&[(0, 0)], 0, b""), b"", "{encoding}");
    }
    // the size of 8 GiB and more is a hole that takes nothing
    let bytes = end(&[old(&[], 1 << 40, b""), file("next", "")]);
    let mut archive = Archive::new(bytes.as_slice());
    assert_eq!(archive.next().unwrap().unwrap().size, 1 << 40);
    assert_eq!(archive.read(&mut [1; 100]).unwrap(), 100);
    assert_eq!(archive.next().unwrap().unwrap().name, b"next");
}

#[test]
fn map_of_many_ranges_is_read() {
    let ranges: Vec<_> = (0..100).map(|index| (10 * index + 1, 3)).collect();
    let data: Vec<_> = (0..300).map(|index| (index % 251) as u8 + 1).collect();
    let mut content = vec![0; 1000];
    for (index, chunk) in data.chunks(3).enumerate() {
        content[10 * index + 1..][..3].copy_from_slice(chunk);
    }
    for (encoding, encode) in ENCODINGS {
        let bytes = end(&[encode(&ranges, 1000, &data)]);
        assert_eq!(read_all(bytes.as_slice()).unwrap()[0].1, content, "{encoding}");
    }
}

#[test]
fn maps_that_contradict_themselves_are_refused() {
    let maps: [(&[(i64, i64)], i64); 6] = [
        (&[(0, 3), (2, 2)], 10),
        (&[(5, 3), (0, 2)], 10),
        (&[(0, 5)], 4),
        (&[(i64::MAX, 5)], 100),
        (&[(0, -5)], 100),
        (&[(0, 5)], -1),
    ];
    for (ranges, size) in maps {
        for (encoding, encode) in ENCODINGS {
            let error = read_all(end(&[encode(ranges, size, DATA)]).as_slice()).unwrap_err();
            assert!(matches!(error, TarError::SparseMap { .. }), "{encoding} {ranges:?} {size}");
        }
    }
}

#[test]
fn maps_must_cover_the_data_that_is_there() {
    for (encoding, encode) in ENCODINGS {
        for length in [4, 6] {
            let bytes = end(&[encode(&[(10, length)], 100, DATA), file("next", "")]);
            let error = read_all(bytes.as_slice()).unwrap_err();
            assert!(matches!(error, TarError::SparseMap { .. }), "{encoding} {length}");
            // as in Go, what nobody reads is not looked at
            let mut archive = Archive::new(bytes.as_slice());
            archive.next().unwrap().unwrap();
            assert_eq!(archive.next().unwrap().unwrap().name, b"next");
        }
    }
    // told with the last byte
    let bytes = end(&[old(&[(0, 4)], 4, DATA)]);
    let mut archive = Archive::new(bytes.as_slice());
    archive.next().unwrap().unwrap();
    assert!(archive.read(&mut [0; 4]).is_err());
}

#[test]
fn archive_that_breaks_off_in_a_map_or_in_data_is_refused() {
    let ranges: Vec<_> = (0..100).map(|index| (10 * index, 5)).collect();
    for (encoding, encode) in ENCODINGS {
        let whole = encode(&ranges, 1000, &[1; 500]);
        for end in [whole.len() - 600, whole.len() - 13] {
            let error = read_all(&whole[..end]).unwrap_err();
            assert!(matches!(error, TarError::Truncated { .. }), "{encoding} {end}");
        }
    }
}

#[test]
fn maps_beyond_their_bound_are_refused() {
    let endless: Vec<_> = (0..50_000).map(|index| (index, 1)).collect();
    let error = read_all(end(&[old(&endless, 50_000, &[1; 50_000])]).as_slice()).unwrap_err();
    assert!(matches!(error, TarError::TooLarge { at: 0 }));
    // 1.0 counts what it says before what there is
    let map = [b"9000000000000000000\n".to_vec(), b"0\n".repeat(1 << 20)].concat();
    let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
    let error = read_all(end(&[pax(&records), file("f", map)]).as_slice()).unwrap_err();
    assert!(matches!(error, TarError::SparseMap { .. } | TarError::TooLarge { .. }), "{error}");
}

#[test]
fn records_out_of_order_are_refused() {
    for records in [
        [("GNU.sparse.numbytes", "1"), ("GNU.sparse.offset", "1")],
        [("GNU.sparse.offset", "1"), ("GNU.sparse.offset", "1")],
        [("GNU.sparse.offset", "1,2"), ("GNU.sparse.numbytes", "1")],
    ] {
        let bytes = end(&[Fields::new(b'x', "x").with(pax_records(&records)), file("f", "")]);
        assert!(matches!(read_all(bytes.as_slice()), Err(TarError::Extension { at: 0, .. })), "{records:?}");
    }
}

#[test]
fn map_and_count_must_agree() {
    for (count, map) in
        [("1", "0,1,2"), ("2", "0,1"), ("x", "0,1"), ("", "0,1"), ("-1", "0,1"), ("1", "0,x"), ("1", "0,")]
    {
        let bytes = end(&[pax(&[("GNU.sparse.numblocks", count), ("GNU.sparse.map", map)]), file("f", "a")]);
        assert!(matches!(read_all(bytes.as_slice()), Err(TarError::SparseMap { .. })), "{count} {map}");
    }
}

#[test]
fn only_files_are_sparse_and_only_in_known_versions() {
    let records = [("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "0,1")];
    let bytes = end(&[pax(&records), symlink("s", "t")]);
    assert!(matches!(read_all(bytes.as_slice()), Err(TarError::SparseMap { .. })));
    let bytes = end(&[Fields::new(b'S', "star").layout(Layout::Star).block()]);
    assert!(matches!(read_all(bytes.as_slice()), Err(TarError::SparseMap { .. })));
    // an unknown version is a file as it is stored
    let records = [
        ("GNU.sparse.major", "2"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "x"),
        ("GNU.sparse.map", "0,1"),
    ];
    let entries = read_all(end(&[pax(&records), file("f", "a")]).as_slice()).unwrap();
    assert_eq!((entries[0].0.name.as_slice(), entries[0].1.as_slice()), (b"f".as_slice(), b"a".as_slice()));
}
