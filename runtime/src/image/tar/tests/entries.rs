//! The sequence of entries: where an archive ends, where it breaks off, and content that is read in part.

use super::super::build::Fields;
use super::*;

#[test]
fn archive_ends_at_two_blocks_of_zeros_or_with_its_source() {
    let whole = end(&[file("f", "abc"), file("g", "")]);
    let length = whole.len();
    assert_eq!(names(&whole).len(), 2);
    for end in [length - 512, length - 1024] {
        assert_eq!(names(&whole[..end]).len(), 2);
    }
    assert_eq!(names(&[whole.as_slice(), b"trailing bytes"].concat()).len(), 2);
    assert!(names(b"").is_empty());
    assert!(names(&[0; 512]).is_empty());
    // the padding of the last content, and the entry that a meta header announces, may be missing
    assert_eq!(names(&end(&[file("f", "abc")])[..515]), [b"f"]);
    assert!(names(&pax(&[("path", "nobody")])).is_empty());
}

#[test]
fn archive_that_breaks_off_is_refused() {
    let whole = end(&[file("f", "abc"), file("g", "")]);
    for end in [1, 511, 512, 514, 1025, 1535, 1537, 2047, 2049] {
        assert!(matches!(error(&whole[..end]), TarError::Truncated { at } if at == end as u64), "{end}");
    }
    let extended = file_with(&[("path", "abc")]);
    assert!(matches!(error(&extended[..515]), TarError::Truncated { at: 515 }));
    // content that nobody reads must be there as well
    let mut archive = Archive::new(&whole[..514]);
    archive.next().unwrap().unwrap();
    assert!(matches!(archive.next(), Err(TarError::Truncated { at: 514 })));
}

#[test]
fn one_block_of_zeros_before_more_is_damage() {
    let bytes = end(&[file("f", ""), vec![0; 512], file("g", "")]);
    assert!(matches!(error(&bytes), TarError::Header { at: 512, .. }));
    let bytes = end(&[b"#!/bin/sh\necho no archive\n".as_slice(), &[b'x'; 1000]]);
    assert!(matches!(error(&bytes), TarError::Header { at: 0, .. }));
}

#[test]
fn unread_content_is_passed_over() {
    let bytes = end(&[file("f", vec![1; 100_000]), file("g", "abc")]);
    let mut archive = Archive::new(bytes.as_slice());
    assert_eq!(archive.read(&mut [0; 10]).unwrap(), 0);
    archive.next().unwrap().unwrap();
    assert_eq!(archive.read(&mut [0; 10]).unwrap(), 10);
    assert_eq!(archive.next().unwrap().unwrap().name, b"g");
    let mut buffer = [0; 10];
    assert_eq!((archive.read(&mut buffer).unwrap(), &buffer[..3]), (3, b"abc".as_slice()));
    assert_eq!(archive.read(&mut buffer).unwrap(), 0);
    assert!(archive.next().unwrap().is_none());
    assert_eq!(archive.read(&mut buffer).unwrap(), 0);
    assert_eq!(archive.position(), bytes.len() as u64);
}

#[test]
fn finish_reads_what_follows_the_archive() {
    let bytes = [end(&[file("f", "abc")]), vec![7; 5000]].concat();
    let mut source = bytes.as_slice();
    let mut archive = Archive::new(&mut source);
    while archive.next().unwrap().is_some() {}
    archive.finish().unwrap();
    assert!(source.is_empty());
}

#[test]
fn nothing_is_read_after_an_error() {
    let bytes = [Fields::new(b'0', "f").bytes(108, b"x").block(), file("g", "")].concat();
    let mut archive = Archive::new(bytes.as_slice());
    assert!(matches!(archive.next(), Err(TarError::Header { at: 0, .. })));
    assert!(matches!(archive.next(), Err(TarError::Failed { at: 512 })));
    assert!(matches!(archive.read(&mut [0; 1]), Err(TarError::Failed { at: 512 })));
}

#[test]
fn errors_of_the_source_are_told_and_interruptions_are_not() {
    struct Source<'a>(&'a [u8], bool);
    impl Read for Source<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            match self.1 {
                true => Err(io::ErrorKind::Interrupted.into()),
                false if self.0.is_empty() => Err(io::Error::other("connection reset")),
                false => self.0.read(&mut buffer[..1]),
            }
        }
    }
    let whole = end(&[file("f", "abc")]);
    assert_eq!(read_all(Source(&whole, false)).unwrap()[0].1, b"abc");
    let error = read_all(Source(&whole[..514], false)).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the tar archive: connection reset");
}
