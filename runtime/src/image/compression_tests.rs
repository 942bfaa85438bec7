use super::*;
use flate2::{Compression, GzBuilder};
use proptest::prelude::*;
use std::io::{BufReader, Cursor, Write};

/// Decompresses a source that gives `piece` bytes at a time.
fn run(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let source = BufReader::with_capacity(piece, Cursor::new(bytes.to_vec()));
    let mut content = Vec::new();
    decompress(source, bytes)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Decompresses `source`, which begins with `first`.
fn decompress(source: impl BufRead + 'static, first: &[u8]) -> io::Result<Box<dyn Read>> {
    Ok(match Format::of(first) {
        Format::Plain => Box::new(source),
        Format::Gzip => Box::new(super::gzip(source)),
        Format::Zstd => Box::new(super::zstd(source)?),
    })
}

fn both_ways(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let at_once = run(bytes, 1 << 16)?;
    assert_eq!(run(bytes, 1)?, at_once);
    Ok(at_once)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let builder = GzBuilder::new().extra(b"SG\x04\0abcd".as_slice()).filename("layer.tar");
    let mut encoder = builder.write(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 3).unwrap()
}

fn skippable(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    [&[0x50 + kind, 0x2a, 0x4d, 0x18], length.as_slice(), content].concat()
}

/// A frame of one raw block whose header asks for a window of 2^`log` bytes.
fn frame_with_window(log: u8) -> Vec<u8> {
    let block = [(3 << 3) | 1, 0, 0, b'a', b'b', b'c'];
    [ZSTD.as_slice(), &[0, (log - 10) << 3], &block].concat()
}

fn content() -> Vec<u8> {
    (0..200_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
}

#[test]
fn uncompressed_content_passes() {
    for bytes in [b"".as_slice(), b"a", b"plain tar", b"P*M\x18", b"\x1f\x8b", &[0; 2000]] {
        assert_eq!(both_ways(bytes).unwrap(), bytes);
    }
}

#[test]
fn gzip_members_are_one_stream_and_may_be_empty() {
    let content = content();
    let (begin, end) = content.split_at(123_456);
    for bytes in [
        gzip(&content),
        [gzip(begin), gzip(end)].concat(),
        // eStargz: the footer is a member without content
        [gzip(b""), gzip(begin), gzip(b""), gzip(b""), gzip(end), gzip(b"")].concat(),
    ] {
        assert_eq!(both_ways(&bytes).unwrap(), content);
    }
    assert_eq!(both_ways(&gzip(b"")).unwrap(), b"");
}

#[test]
fn zstd_frames_are_one_stream_among_skippable_ones() {
    let content = content();
    let (begin, end) = content.split_at(123_456);
    for bytes in [
        zstd(&content),
        [zstd(begin), zstd(b""), zstd(end)].concat(),
        // pzstd: the length of the frame that follows
        [skippable(0, &[1, 2, 3, 4]), zstd(begin), skippable(0, &[1, 2, 3, 4]), zstd(end)].concat(),
        // zstd:chunked: manifest and footer
        [zstd(begin), zstd(end), skippable(0, &zstd(b"manifest")), skippable(0, &[7; 64])].concat(),
        [skippable(15, b""), skippable(3, &[0; 100_000]), zstd(&content), skippable(15, b"")].concat(),
    ] {
        assert_eq!(both_ways(&bytes).unwrap(), content);
    }
    assert_eq!(both_ways(&skippable(5, b"nothing else")).unwrap(), b"");
}

#[test]
fn zeros_after_the_last_part_are_padding() {
    for bytes in [gzip(b"abc"), zstd(b"abc"), [zstd(b"abc"), skippable(0, b"x")].concat()] {
        for zeros in [1, 3, 9, 512, 100_000] {
            assert_eq!(both_ways(&[bytes.clone(), vec![0; zeros]].concat()).unwrap(), b"abc");
        }
    }
}

#[test]
fn other_bytes_after_the_last_part_are_damage() {
    for (bytes, format) in [(gzip(b"abc"), "gzip"), (zstd(b"abc"), "zstd")] {
        for rest in [b"x".as_slice(), b"some garbage", b"\0\0x", &[[0; 3000].as_slice(), &bytes].concat()] {
            let error = run(&[&bytes, rest].concat(), 100).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("cannot decompress part") && text.contains(format), "{error}");
        }
    }
}

#[test]
fn data_that_breaks_off_is_damage_wherever_it_does() {
    let noise: Vec<u8> = content()
        .iter()
        .scan(1u32, |state, byte| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) ^ u32::from(*byte);
            Some((*state >> 24) as u8)
        })
        .take(2000)
        .collect();
    for whole in [gzip(&noise), zstd(&noise), [zstd(&noise), skippable(0, b"12345678")].concat()] {
        for end in (9..whole.len()).filter(|end| *end != zstd(&noise).len()) {
            let error = run(&whole[..end], 64).unwrap_err();
            assert!(error.get_ref().is_some_and(|inner| inner.is::<CompressionError>()), "{end}: {error:?}");
        }
    }
    let breaks_off = run(&zstd(&noise)[..100], 64).unwrap_err().to_string();
    assert_eq!(
        breaks_off,
        "cannot decompress part 1 of the zstd data of the layer: it breaks off; push the layer again"
    );
}

#[test]
fn checksums_are_checked() {
    let mut bytes = gzip(&content());
    let crc = bytes.len() - 8;
    bytes[crc] ^= 1;
    assert!(run(&bytes, 1000).is_err());
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(b"content").unwrap();
    let mut bytes = encoder.finish().unwrap();
    assert_eq!(run(&bytes, 1000).unwrap(), b"content");
    *bytes.last_mut().unwrap() ^= 1;
    assert!(run(&bytes, 1000).is_err());
}

/// Layers that are read at the same time, more of them than any pull has, and one with a large window that
/// begins after them.
#[test]
fn small_frames_take_no_large_window() {
    let large = frame_with_window(u8::try_from(LARGEST_WINDOW).unwrap());
    let open = |bytes: Vec<u8>| {
        let mut layer = super::zstd(Cursor::new([bytes, zstd(b"def")].concat())).unwrap();
        let mut first = [0];
        layer.read_exact(&mut first).unwrap();
        assert_eq!(first, *b"a");
        layer
    };
    let rest = |mut layer: Box<dyn Read>| {
        let mut content = Vec::new();
        layer.read_to_end(&mut content).unwrap();
        content
    };
    let small: Vec<_> = (0..20).map(|_| open(zstd(b"abc"))).collect();
    assert_eq!(rest(Box::new(open(large.clone()))), b"bcdef");
    let large: Vec<_> = (0..20).map(|_| open(large.clone())).collect();
    for layer in small {
        assert_eq!(rest(Box::new(layer)), b"bcdef");
    }
    for layer in large {
        assert_eq!(rest(Box::new(layer)), b"bcdef");
    }
}

#[test]
fn windows_are_bounded() {
    let bound = u8::try_from(LARGEST_WINDOW).unwrap();
    assert_eq!(run(&frame_with_window(bound), 100).unwrap(), b"abc");
    let error = run(&frame_with_window(bound + 1), 100).unwrap_err();
    assert!(error.to_string().contains("more than 128 MiB"), "{error}");
    // a second frame has the same bound
    let bytes = [zstd(b"abc"), frame_with_window(bound + 1)].concat();
    assert!(run(&bytes, 100).unwrap_err().to_string().contains("part 2"));
}

#[test]
fn errors_of_the_source_stay_what_they_are() {
    struct Broken(Vec<u8>);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.is_empty() {
                true => Err(io::Error::new(ErrorKind::ConnectionReset, "registry went away")),
                false => {
                    buffer[0] = self.0.remove(0);
                    Ok(1)
                }
            }
        }
    }
    for whole in [gzip(b"abc"), zstd(b"abc")] {
        let source = BufReader::new(Broken(whole[..10].to_vec()));
        let error = decompress(source, &whole).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::ConnectionReset, "registry went away")
        );
    }
}

proptest! {
    #[test]
    fn parts_of_any_content_read_back(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
        piece in 1usize..400,
        zeros in 0usize..20,
    ) {
        let content = parts.concat();
        let padding = vec![0; zeros];
        let members: Vec<u8> = parts.iter().flat_map(|part| gzip(part)).chain(padding.clone()).collect();
        prop_assert_eq!(run(&members, piece).unwrap(), content.clone());
        let frames = parts.iter().flat_map(|part| [skippable(1, part), zstd(part)].concat());
        prop_assert_eq!(run(&frames.chain(padding).collect::<Vec<_>>(), piece).unwrap(), content);
    }

    #[test]
    fn damaged_parts_are_read_or_refused(content: Vec<u8>, place: prop::sample::Index, byte: u8, piece in 1usize..200) {
        for mut bytes in [gzip(&content), [skippable(2, &content), zstd(&content)].concat()] {
            let at = place.index(bytes.len());
            bytes[at] = byte;
            let _ = run(&bytes, piece);
        }
    }
}
