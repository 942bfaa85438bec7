//! Any bytes as a compressed layer, of which the first megabytes are decompressed.

#![no_main]

use isopod_runtime::image::compression::{Format, gzip, zstd};
use libfuzzer_sys::fuzz_target;
use std::io::{Cursor, Read};

const LIMIT: u64 = 4 << 20;

/// Bytes after the first of zstd's frames and skippable frames.
const MAGICS: [&[u8]; 2] = [&[0xb5, 0x2f, 0xfd], &[0x2a, 0x4d, 0x18]];

fuzz_target!(|bytes: &[u8]| {
    let source = Cursor::new(bytes.to_vec());
    let reader: Box<dyn Read> = match Format::of(bytes) {
        Format::Plain => Box::new(source),
        Format::Gzip => Box::new(gzip(source)),
        Format::Zstd => Box::new(zstd(source).expect("there is memory")),
    };
    let mut content = Vec::new();
    let result = reader.take(LIMIT).read_to_end(&mut content);
    // what is not compressed passes as it is
    let is_compressed =
        bytes.starts_with(b"\x1f\x8b\x08") || bytes.get(1..4).is_some_and(|magic| MAGICS.contains(&magic));
    assert!(is_compressed || (result.is_ok() && bytes.starts_with(&content)));
});
