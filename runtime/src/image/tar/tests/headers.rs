//! One header block: layouts, kinds, numbers and the checksum.

use super::super::build::{Fields, Layout, device, dir, end, fifo, file, hard, long_name, symlink};
use super::*;

#[test]
fn each_kind_of_entry_is_told() {
    let parts = [
        file("f", "content"),
        dir("d/"),
        symlink("s", "target"),
        hard("h", "f"),
        fifo("p"),
        device(b'3', "c", 1, 3),
        device(b'4', "b", 8, 300),
        Fields::new(b'7', "contiguous").with("same as a file"),
        Fields::new(b'V', "volume label").with("passed over by callers"),
    ];
    let entries = read_all(end(&parts).as_slice()).unwrap();
    let kinds: Vec<_> = entries.iter().map(|(entry, _)| entry.kind).collect();
    assert_eq!(
        kinds,
        [
            Kind::File,
            Kind::Directory,
            Kind::SymbolicLink,
            Kind::HardLink,
            Kind::Fifo,
            Kind::CharacterDevice,
            Kind::BlockDevice,
            Kind::File,
            Kind::Other(b'V'),
        ]
    );
    assert_eq!(entries[0].1, b"content");
    assert_eq!(entries[2].0.link, b"target");
    assert_eq!(entries[3].0.link, b"f");
    assert_eq!((entries[5].0.device, entries[6].0.device), ((1, 3), (8, 300)));
    assert_eq!(entries[7].1, b"same as a file");
}

#[test]
fn fields_of_every_layout_are_read() {
    for layout in [Layout::V7, Layout::Ustar, Layout::Gnu, Layout::Star] {
        let fields = Fields::new(b'0', "name").layout(layout).mode(0o104_755).owner(1000, 0o7_777_777);
        let (entry, content) = only(&end(&[fields.mtime(1_234_567_890).with("abc")]));
        assert_eq!((entry.name.as_slice(), entry.mode), (b"name".as_slice(), 0o4755));
        assert_eq!((entry.uid, entry.gid, entry.mtime), (1000, 0o7_777_777, seconds(1_234_567_890, 0)));
        assert_eq!((entry.size, content.as_slice()), (3, b"abc".as_slice()));
    }
}

#[test]
fn prefix_comes_before_the_name_where_the_layout_has_one() {
    let with = |layout, width| {
        let fields = Fields::new(b'0', "n".repeat(100)).text(345, width, "p".repeat(200)).layout(layout);
        only(&end(&[fields.block()])).0.name
    };
    let expected = |width| format!("{}/{}", "p".repeat(width), "n".repeat(100)).into_bytes();
    assert_eq!(with(Layout::Ustar, 155), expected(155));
    assert_eq!(with(Layout::Star, 131), expected(131));
    assert_eq!(with(Layout::V7, 155), "n".repeat(100).into_bytes());
    // Go's writer before 1.8
    assert_eq!(with(Layout::Gnu, 155), expected(155));
}

#[test]
fn times_of_a_gnu_header_are_no_prefix() {
    let gnu = || Fields::new(b'0', "n").layout(Layout::Gnu).number(345, 12, 1_400_000_000);
    assert_eq!(names(&end(&[gnu().number(357, 12, -1).block()])), [b"n"]);
    // neither times nor a path
    assert_eq!(names(&end(&[gnu().bytes(345, b"\x01\xff\xfe").block()])), [b"n"]);
}

#[test]
fn directories_of_v7_end_in_a_slash() {
    let old = |name| Fields::new(0, name).layout(Layout::V7);
    let parts = [old("d/").size(700).block(), old("f").with("abc"), long_name("long/"), old("x").block()];
    let entries = read_all(end(&parts).as_slice()).unwrap();
    let told: Vec<_> = entries.iter().map(|(entry, _)| (entry.kind, entry.size)).collect();
    assert_eq!(told, [(Kind::Directory, 0), (Kind::File, 3), (Kind::Directory, 0)]);
}

#[test]
fn numbers_are_read_however_they_are_padded() {
    let uid = |field: &[u8]| {
        read_all(end(&[Fields::new(b'0', "f").text(108, 8, field).block()]).as_slice())
            .map(|entries| entries[0].0.uid)
            .ok()
    };
    let octal: [(&[u8], i64); 7] = [
        (b"", 0),
        (b"        ", 0),
        (b"   17 \0 ", 15),
        (b"\0\x0017\0\0", 15),
        (b"17\x009", 15),
        (b"77777777", 0o77_777_777),
        (b"17", 15),
    ];
    for (field, value) in octal {
        assert_eq!(uid(field), Some(value), "{field:?}");
    }
    let binary: [(&[u8], i64); 4] = [
        (b"\x80\0\0\0\xff\xff\xff\xff", 0xffff_ffff),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        (b"\xc0\0\0\0\0\0\0\0", -(1 << 62)),
        (b"\xbf\xff\xff\xff\xff\xff\xff\xff", (1 << 62) - 1),
    ];
    for (field, value) in binary {
        assert_eq!(uid(field), Some(value), "{field:?}");
    }
    for field in [b"8".as_slice(), b"+7", b"-7", b"0x7", b"1 7"] {
        assert_eq!(uid(field), None, "{field:?}");
    }
}

#[test]
fn numbers_of_base_256_that_no_field_holds_are_refused() {
    let mtime = |field: &[u8; 12]| {
        read_all(end(&[Fields::new(b'0', "f").bytes(136, field).block()]).as_slice())
            .map(|entries| entries[0].0.mtime.seconds)
    };
    assert_eq!(mtime(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff").unwrap(), i64::MAX);
    assert_eq!(mtime(b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0").unwrap(), i64::MIN);
    for field in [
        b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x81\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        assert!(matches!(mtime(field), Err(TarError::Header { at: 0, .. })), "{field:?}");
    }
}

#[test]
fn checksum_may_sum_signed_bytes() {
    let mut block = Fields::new(b'0', "\u{e4}\u{f6}").block();
    let signed: i64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i64::from(byte.cast_signed()) })
        .sum();
    block[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    assert_eq!(names(&end(&[&block])), ["\u{e4}\u{f6}".as_bytes()]);
    block[0] ^= 1;
    assert!(matches!(error(&end(&[&block])), TarError::Header { at: 0, .. }));
}

#[test]
fn negative_sizes_are_refused_where_there_is_content() {
    assert!(matches!(error(&end(&[Fields::new(b'0', "f").size(-1).block()])), TarError::Header { .. }));
    assert!(matches!(error(&file_with(&[("size", "-1")])), TarError::Header { .. }));
    assert_eq!(only(&end(&[Fields::new(b'5', "d").size(-1).block()])).0.size, 0);
}
