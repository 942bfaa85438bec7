//! Tests of `archive`, with a small tar writer that other tests of `image` use too.

use super::*;
use proptest::prelude::*;

/// A header of POSIX tar with a good checksum.
pub fn header(name: &str, kind: u8, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    write_checksum(&mut header);
    header
}

/// An entry with its content, padded.
pub fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, content.len() as u64).to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Entries and the end marker.
pub fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

fn record(key: &str, value: &str) -> String {
    let body = format!(" {key}={value}\n");
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    format!("{length}{body}")
}

fn pass(bytes: &[u8], piece: usize) -> Result<Vec<u8>, String> {
    let mut archive = Archive::new(Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        archive.write_all(piece).map_err(|error| error.to_string())?;
    }
    archive.finish().map_err(|error| error.to_string())
}

#[test]
fn good_archive_passes_unchanged() {
    let bytes = archive(&[entry("d/", b'5', b""), entry("d/f", b'0', b"content"), entry("d/l", b'1', b"")]);
    assert_eq!(pass(&bytes, 100).unwrap(), bytes);
}

#[test]
fn missing_end_marker_is_added_and_what_follows_it_is_dropped() {
    let whole = archive(&[entry("f", b'0', b"x")]);
    assert_eq!(pass(&entry("f", b'0', b"x"), 512).unwrap(), whole);
    let followed = [whole.clone(), vec![7; 3000]].concat();
    assert_eq!(pass(&followed, 999).unwrap(), whole);
    assert_eq!(pass(b"", 1).unwrap(), [0; 1024]);
}

#[test]
fn archive_that_breaks_off_is_refused() {
    let bytes = entry("f", b'0', &[1; 2000]);
    assert!(pass(&bytes[..700], 512).unwrap_err().contains("breaks off after 700 bytes"));
    assert!(pass(&bytes[..300], 512).unwrap_err().contains("breaks off"));
    let extension = entry("x", b'x', record("path", "f").as_bytes());
    assert!(pass(&extension, 512).unwrap_err().contains("breaks off"));
}

#[test]
fn kinds_that_would_be_lost_are_refused_with_their_place() {
    let bytes = archive(&[entry("f", b'0', b"x"), entry("s", b'S', b"")]);
    let error = pass(&bytes, 512).unwrap_err();
    assert!(error.contains("byte 1024") && error.contains("sparse"), "{error}");
    let sparse = record("GNU.sparse.major", "1");
    assert!(pass(&archive(&[entry("x", b'x', sparse.as_bytes())]), 512).is_err());
}

#[test]
fn old_spelling_of_files_and_directories_is_rewritten() {
    let passed = pass(&archive(&[entry("f", 0, b"x"), entry("d/", 0, b"")]), 512).unwrap();
    assert_eq!(passed, archive(&[entry("f", b'0', b"x"), entry("d/", b'5', b"")]));
}

#[test]
fn link_with_a_size_has_no_content() {
    let mut link = header("l", b'1', 700).to_vec();
    link.extend(entry("f", b'0', b"x"));
    let expected = archive(&[header("l", b'1', 0).to_vec(), entry("f", b'0', b"x")]);
    assert_eq!(pass(&archive(&[link]), 512).unwrap(), expected);
}

#[test]
fn size_of_the_extended_header_counts() {
    let content = vec![5; 1500];
    let mut file = header("f", b'0', 0).to_vec();
    file.extend_from_slice(&content);
    file.resize(BLOCK + 1536, 0);
    let bytes = archive(&[entry("x", b'x', record("size", "1500").as_bytes()), file]);
    assert_eq!(pass(&bytes, 64).unwrap(), bytes);
}

#[test]
fn attributes_that_nothing_holds_or_only_overlayfs_writes_are_masked() {
    let records = |names: [&str; 4]| names.map(|name| record(name, "v")).concat();
    let given = records([
        "SCHILY.xattr.user.a",
        "SCHILY.xattr.com.apple.b",
        "SCHILY.xattr.trusted.overlay.redirect",
        "LIBARCHIVE.xattr.security.capability",
    ]);
    let expected = records([
        "SCHILY.xattr.user.a",
        "XCHILY.xattr.com.apple.b",
        "XCHILY.xattr.trusted.overlay.redirect",
        "LIBARCHIVE.xattr.security.capability",
    ]);
    let with = |records: String| archive(&[entry("x", b'x', records.as_bytes()), entry("f", b'0', b"")]);
    assert_eq!(pass(&with(given), 77).unwrap(), with(expected));
}

#[test]
fn damaged_header_and_large_extension_are_refused() {
    let mut bytes = archive(&[entry("f", b'0', b"x"), entry("g", b'0', b"")]);
    bytes[1024] ^= 1;
    assert!(pass(&bytes, 512).unwrap_err().contains("damaged header at byte 1024"));
    let large = header("x", b'L', LARGEST_EXTENSION + 1);
    assert!(pass(&large, 512).unwrap_err().contains("larger"));
}

proptest! {
    #[test]
    fn pieces_do_not_matter(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 0..5), piece in 1usize..2000) {
        let entries: Vec<_> = contents.iter().map(|content| entry("f", b'0', content)).collect();
        let bytes = archive(&entries);
        prop_assert_eq!(pass(&bytes, piece).unwrap(), bytes);
    }

    #[test]
    fn damaged_archive_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), flip: prop::sample::Index) {
        let _ = pass(&bytes, 300);
        bytes.splice(0..0, archive(&[entry("x", b'x', record("size", "9").as_bytes()), entry("f", b'0', b"12345678")]));
        let at = flip.index(bytes.len());
        bytes[at] ^= 0x10;
        let _ = pass(&bytes, 300);
    }
}
