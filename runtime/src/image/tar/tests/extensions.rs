//! Meta headers: pax records, global headers, long names.

use super::super::build::{
    Fields, Layout, dir, end, file, global, hard, long_link, long_name, padded, pax, symlink,
};
use super::*;

#[test]
fn pax_records_replace_the_header_fields() {
    let records = [
        ("path", "from pax"),
        ("linkpath", "link\nwith line"),
        ("uid", "4294967296"),
        ("gid", "-1"),
        ("mtime", "1350244992.023960108"),
        ("charset", "BINARY"),
        ("comment", "nobody reads this"),
        ("SCHILY.xattr.user.b", "2=2"),
        ("SCHILY.xattr.user.a", ""),
    ];
    let (entry, _) = only(&end(&[pax(&records), symlink("ustar", "target")]));
    assert_eq!(
        (entry.name.as_slice(), entry.link.as_slice()),
        (b"from pax".as_slice(), b"link\nwith line".as_slice())
    );
    assert_eq!((entry.uid, entry.gid, entry.mtime), (1 << 32, -1, seconds(1_350_244_992, 23_960_108)));
    let attributes = [(b"user.a".to_vec(), b"".to_vec()), (b"user.b".to_vec(), b"2=2".to_vec())];
    assert_eq!(entry.attributes, attributes);
}

#[test]
fn size_of_a_pax_record_is_that_of_the_content() {
    let parts = [pax(&[("size", "3")]), Fields::new(b'0', "f").block(), padded(b"abc"), file("next", "")];
    let entries = read_all(end(&parts).as_slice()).unwrap();
    assert_eq!(
        (entries[0].1.as_slice(), entries[1].0.name.as_slice()),
        (b"abc".as_slice(), b"next".as_slice())
    );
    // a kind without content has none, whatever two sizes say
    let parts = [pax(&[("size", "3")]), Fields::new(b'2', "l").size(5).block(), file("next", "")];
    assert_eq!(names(&end(&parts)), [b"l".as_slice(), b"next"]);
}

#[test]
fn empty_pax_values_leave_the_header_fields() {
    let records = ["path", "linkpath", "uid", "gid", "size", "mtime", "atime"].map(|key| (key, ""));
    let fields = Fields::new(b'0', "f").link("l").owner(3, 4).mtime(5).with("abc");
    let (entry, content) = only(&end(&[pax(&records), fields]));
    assert_eq!(
        (entry.name.as_slice(), entry.link.as_slice(), content.as_slice()),
        (b"f".as_slice(), b"l".as_slice(), b"abc".as_slice())
    );
    assert_eq!((entry.uid, entry.gid, entry.mtime), (3, 4, seconds(5, 0)));
}

#[test]
fn last_of_equal_records_counts() {
    let records = [("path", "first"), ("SCHILY.xattr.a", "1"), ("path", "second"), ("SCHILY.xattr.a", "2")];
    let (entry, _) = only(&file_with(&records));
    assert_eq!(
        (entry.name.as_slice(), entry.attributes),
        (b"second".as_slice(), vec![(b"a".to_vec(), b"2".to_vec())])
    );
    // an empty one takes the first away
    assert_eq!(names(&file_with(&[("path", "first"), ("path", "")])), [b"ustar"]);
}

#[test]
fn fractions_of_times_are_cut_to_nanoseconds() {
    let times = [
        ("0", seconds(0, 0)),
        ("1.", seconds(1, 0)),
        ("+1.5", seconds(1, 500_000_000)),
        ("1.1234567899", seconds(1, 123_456_789)),
        ("1.0000000009", seconds(1, 0)),
        ("-1", seconds(-1, 0)),
        ("-1.5", seconds(-2, 500_000_000)),
        ("-0.5", seconds(-1, 500_000_000)),
        ("-1.0000000001", seconds(-1, 0)),
        ("-1.000000001", seconds(-2, 999_999_999)),
    ];
    for (text, time) in times {
        assert_eq!(only(&file_with(&[("mtime", text)])).0.mtime, time, "{text}");
    }
    for text in [".5", "-", "1.5x", "1.-5", "x", "1e3", "99999999999999999999"] {
        for key in ["mtime", "atime", "ctime"] {
            assert!(
                matches!(error(&file_with(&[(key, text)])), TarError::Extension { at: 1024, .. }),
                "{key}={text}"
            );
        }
    }
}

#[test]
fn damaged_extended_headers_are_refused() {
    for content in [
        b"11 path=x\n".as_slice(),
        b"8 path=x\n",
        b"9 path=xx",
        b"9 path:x\n",
        b"-9 path=x\n",
        b"path=x\n",
        b"5 =x\n",
        b"4 =\n",
        b"99999999999999999999 a=b\n",
        b"12 path=a\0b\n",
        b"10 a\0b=cd\n",
        b"9 path=x\n\0\0\0",
        b"9 uid=1x\n",
        b"8 uid= \n",
    ] {
        let bytes = end(&[Fields::new(b'x', "x").with(content), file("f", "")]);
        assert!(
            matches!(error(&bytes), TarError::Extension { .. }),
            "{:?}",
            String::from_utf8_lossy(content)
        );
    }
    // NULs elsewhere are data
    let (entry, _) = only(&file_with(&[("SCHILY.xattr.user.raw", "a\0b"), ("comment", "\0")]));
    assert_eq!(entry.attributes, [(b"user.raw".to_vec(), b"a\0b".to_vec())]);
}

#[test]
fn long_names_of_gnu_come_before_those_of_pax() {
    let (name, target) = ("n".repeat(300), "t".repeat(255));
    for parts in [
        [long_name(&name), long_link(&target), pax(&[("path", "pax"), ("linkpath", "pax")])],
        [pax(&[("path", "pax"), ("linkpath", "pax")]), long_link(&target), long_name(&name)],
    ] {
        let (entry, _) = only(&end(&[parts.concat(), Fields::new(b'2', "n").link("t").block()]));
        assert_eq!((entry.name, entry.link), (name.clone().into_bytes(), target.clone().into_bytes()));
    }
    let entries = read_all(
        end(&[file(&name, "a"), dir(&name), symlink(&name, &target), hard("h", &target)]).as_slice(),
    )
    .unwrap();
    assert!(entries[..3].iter().all(|(entry, _)| entry.name == name.as_bytes()));
    assert!(entries[2..].iter().all(|(entry, _)| entry.link == target.as_bytes()));
    // they hold for one entry
    assert_eq!(names(&end(&[file(&name, ""), file("next", "")])), [name.as_bytes(), b"next"]);
}

#[test]
fn long_name_ends_at_its_nul_and_may_be_empty() {
    let raw = |content: &str| Fields::new(b'L', "l").layout(Layout::Gnu).with(content);
    assert_eq!(names(&end(&[raw("a\0b"), file("f", "")])), [b"a"]);
    assert_eq!(names(&end(&[raw("without end"), file("f", "")])), [b"without end".as_slice()]);
    assert_eq!(names(&end(&[raw("replaced"), raw(""), file("f", "")])), [b"f"]);
}

#[test]
fn last_extended_header_before_an_entry_counts() {
    let parts = [pax(&[("path", "first"), ("uid", "5")]), pax(&[("gid", "6")]), file("f", "")];
    let (entry, _) = only(&end(&parts));
    assert_eq!((entry.name.as_slice(), entry.uid, entry.gid), (b"f".as_slice(), 0, 6));
}

#[test]
fn global_headers_are_entries_and_change_none() {
    let parts = [
        global(&[("path", "named"), ("uid", "5"), ("mtime", "x")]),
        file("f", ""),
        pax(&[("path", "lost")]),
        global(&[("comment", "commit id")]),
        file("g", ""),
    ];
    let entries = read_all(end(&parts).as_slice()).unwrap();
    let told: Vec<_> =
        entries.iter().map(|(entry, _)| (entry.kind, entry.name.as_slice(), entry.uid)).collect();
    assert_eq!(told[1], (Kind::File, b"f".as_slice(), 0));
    assert_eq!(told[3], (Kind::File, b"g".as_slice(), 0));
    assert_eq!(
        (told[0].0, told[2]),
        (Kind::Other(b'g'), (Kind::Other(b'g'), b"pax_global_header".as_slice(), 0))
    );
}

#[test]
fn extensions_beyond_their_bound_are_refused() {
    let bound = usize::try_from(LARGEST_EXTENSION).unwrap();
    let name = "n".repeat(bound - 1);
    assert_eq!(only(&end(&[long_name(&name), file("f", "")])).0.name, name.as_bytes());
    assert!(matches!(error(&end(&[long_name(name + "n"), file("f", "")])), TarError::TooLarge { at: 0 }));
    let claimed = Fields::new(b'x', "x").size(i64::MAX).block();
    assert!(matches!(error(&end(&[claimed])), TarError::TooLarge { at: 0 }));
}
