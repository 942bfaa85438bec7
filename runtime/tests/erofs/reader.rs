//! What is read of images that mkfs.erofs made: every kind of file, in every layout of it that layers may have.

use crate::mkfs;
use crate::tar::{Entry, archive};
use isopod_runtime::image::erofs::{Erofs, ErofsError, Inode};
use std::fs::{self, File};

/// Files keep a part of a block beside their inodes, as mkfs.erofs does by default.
pub const INLINE: &[&str] = &["--quiet", "--tar=f", "--aufs", "-T0", "--mkfs-time"];

/// Attributes that more than one inode has are shared.
pub const SHARED: &[&str] = &["--quiet", "--tar=f", "--aufs", "-x0", "-T0", "--mkfs-time"];

pub fn image(entries: &[Entry], arguments: &[&str]) -> Erofs {
    let directory = tempfile::tempdir().unwrap();
    Erofs::open(mkfs::convert(&archive(entries), arguments, &directory.path().join("image")).unwrap())
        .unwrap()
}

fn find(erofs: &Erofs, path: &str) -> Inode {
    path.split('/').filter(|name| !name.is_empty()).fold(erofs.root().unwrap(), |directory, name| {
        erofs.lookup(&directory, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("no {name} of {path}"))
    })
}

fn content(erofs: &Erofs, inode: &Inode) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(inode.size).unwrap() + 100];
    let length = erofs.read_at(inode, 0, &mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// An archive with every kind of file.
pub fn zoo() -> Vec<Entry> {
    let own = |entry: Entry| Entry { mode: 0o4711, uid: 70_000, gid: 3, mtime: (-5, 0), ..entry };
    vec![
        Entry { mode: 0o700, uid: 9, ..Entry::new(b'5', "directory") },
        own(Entry::file("directory/long", pattern(70_001))),
        Entry::file("directory/short", "few bytes"),
        Entry::file("directory/empty", ""),
        Entry::file("directory/whole", pattern(8192)),
        Entry::linked(b'1', "directory/other name", "directory/long"),
        Entry::linked(b'2', "link", "directory/long"),
        Entry::linked(b'2', "long link", "x/".repeat(1000)),
        Entry { device: (8, 300), ..Entry::new(b'4', "disk") },
        Entry { device: (259, 70_000), ..Entry::new(b'3', "terminal") },
        Entry { device: (0, 0), ..Entry::new(b'3', "gone") },
        Entry::new(b'6', "pipe"),
        Entry::file("capable", "x")
            .with_attribute("security.capability", [1, 0, 0, 2, 0, 32])
            .with_attribute("user.text", "a=b\n")
            .with_attribute("trusted.empty", "")
            .with_attribute("system.posix_acl_access", [2, 0, 0, 0]),
        Entry::file("likewise", "y").with_attribute("user.text", "a=b\n"),
        Entry::file("much", "z").with_attribute("user.much", pattern(10_000)),
        Entry::file(vec![0xFF; 255], "odd"),
    ]
}

#[test]
fn every_kind_of_file_is_read_as_it_was_written() {
    for arguments in [mkfs::LAYER, INLINE, SHARED] {
        let erofs = image(&zoo(), arguments);
        let directory = find(&erofs, "directory");
        assert!(directory.is_directory() && directory.uid == 9 && directory.mode == 0o040_700);
        let long = find(&erofs, "directory/long");
        assert_eq!((long.mode, long.uid, long.gid, long.mtime), (0o104_711, 70_000, 3, (-5, 0)));
        assert_eq!((long.links, long.number), (2, find(&erofs, "directory/other name").number));
        assert_eq!(content(&erofs, &long), pattern(70_001));
        assert_eq!(content(&erofs, &find(&erofs, "directory/short")), b"few bytes");
        assert_eq!(content(&erofs, &find(&erofs, "directory/empty")), b"");
        assert_eq!(content(&erofs, &find(&erofs, "directory/whole")), pattern(8192));
        assert_eq!(erofs.read_link(&find(&erofs, "link")).unwrap(), b"directory/long");
        assert_eq!(erofs.read_link(&find(&erofs, "long link")).unwrap(), "x/".repeat(1000).as_bytes());
        assert_eq!(find(&erofs, "disk").device, (8, 300));
        assert_eq!(find(&erofs, "terminal").device, (259, 70_000));
        assert!(find(&erofs, "gone").is_whiteout() && !find(&erofs, "terminal").is_whiteout());
        assert_eq!(find(&erofs, "pipe").mode, 0o010_644);
        let root = erofs.root().unwrap();
        assert!(erofs.lookup(&root, &[0xFF; 255]).unwrap().unwrap().is_file());
        assert_eq!(erofs.entries(&root).unwrap().len(), 11);
    }
}

#[test]
fn content_is_read_from_any_place() {
    for arguments in [mkfs::LAYER, INLINE] {
        let erofs = image(&zoo(), arguments);
        let (long, whole) = (find(&erofs, "directory/long"), pattern(70_001));
        for (offset, length) in
            [(0, 1), (4095, 2), (65_536, 4465), (65_530, 9000), (70_000, 5), (70_001, 5), (1 << 40, 5)]
        {
            let mut bytes = vec![0; length];
            let read = erofs.read_at(&long, offset, &mut bytes).unwrap();
            let start = usize::try_from(offset).unwrap().min(whole.len());
            assert_eq!(bytes[..read], whole[start..whole.len().min(start + length)], "{offset} {length}");
        }
    }
}

#[test]
fn attributes_have_their_full_names() {
    for arguments in [mkfs::LAYER, INLINE, SHARED] {
        let erofs = image(&zoo(), arguments);
        let attributes = |path| {
            let mut list = erofs.attributes(&find(&erofs, path)).unwrap();
            list.sort();
            list
        };
        let text = (b"user.text".to_vec(), b"a=b\n".to_vec());
        let expected = [
            (b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, 32]),
            (b"system.posix_acl_access".to_vec(), vec![2, 0, 0, 0]),
            (b"trusted.empty".to_vec(), vec![]),
            text.clone(),
        ];
        assert_eq!(attributes("capable"), expected);
        assert_eq!(attributes("likewise"), [text]);
        assert_eq!(attributes("much"), [(b"user.much".to_vec(), pattern(10_000))]);
        assert_eq!(attributes("directory"), []);
    }
}

#[test]
fn large_directory_is_searched_and_listed() {
    let name = |number: usize| format!("{:0width$}", number * 7, width = 5 + number % 40);
    let entries: Vec<_> = (0..6000).map(|number| Entry::file(format!("d/{}", name(number)), [])).collect();
    let erofs = image(&entries, mkfs::LAYER);
    let directory = find(&erofs, "d");
    assert!(directory.size > 100_000, "one block only");
    for number in 0..6000 {
        assert!(erofs.lookup(&directory, name(number).as_bytes()).unwrap().is_some(), "{number}");
        assert!(erofs.lookup(&directory, format!("{}!", name(number)).as_bytes()).unwrap().is_none());
    }
    for name in ["", " ", ".", "..", "~", "0"] {
        assert!(erofs.lookup(&directory, name.as_bytes()).unwrap().is_none(), "{name:?}");
    }
    let mut expected: Vec<_> = (0..6000).map(|number| name(number).into_bytes()).collect();
    expected.sort();
    let listed: Vec<_> = erofs.entries(&directory).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, expected);
}

#[test]
fn wrong_kinds_and_unknown_formats_are_refused() {
    let erofs = image(&zoo(), mkfs::LAYER);
    let (root, file) = (erofs.root().unwrap(), find(&erofs, "capable"));
    assert!(matches!(erofs.lookup(&file, b"x"), Err(ErofsError::WrongKind { .. })));
    assert!(matches!(erofs.entries(&file), Err(ErofsError::WrongKind { .. })));
    assert!(matches!(erofs.read_link(&file), Err(ErofsError::WrongKind { .. })));
    assert!(matches!(erofs.read_at(&root, 0, &mut [0]), Err(ErofsError::WrongKind { .. })));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let convert = |arguments| Erofs::open(mkfs::convert(&archive(&zoo()), arguments, &path).unwrap());
    let compressed = convert(&["--quiet", "--tar=f", "-zdeflate", "-Eall-fragments"]);
    assert!(matches!(compressed, Err(ErofsError::Unsupported(_))));
    fs::write(&path, pattern(4096)).unwrap();
    assert!(matches!(Erofs::open(File::open(&path).unwrap()), Err(ErofsError::NotErofs(_))));
    fs::write(&path, "short").unwrap();
    assert!(matches!(Erofs::open(File::open(&path).unwrap()), Err(ErofsError::Io { offset: 1024, .. })));
}
