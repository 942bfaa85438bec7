//! Any bytes as the message that opens a stream, or answers that: read within its bound, or refused.

#![no_main]

use isopod_protocols::stdio::{
    MAX_OPENING, decode_open, decode_opened, encode_open, encode_opened, opening_length,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((prefix, rest)) = bytes.split_first_chunk() else { return };
    let Ok(length) = opening_length(*prefix) else { return };
    assert!(length <= MAX_OPENING);
    let Some(body) = rest.get(..length) else { return };
    if let Ok(open) = decode_open(body) {
        assert!(open.container_id.len() + open.process_id.len() <= length);
        let again = encode_open(&open);
        assert!(decode_open(&again[2..]) == Ok(open));
    }
    if let Ok(opened) = decode_opened(body) {
        assert!(opened.error.len() <= length);
        let again = encode_opened(&opened);
        assert!(decode_opened(&again[2..]) == Ok(opened));
    }
});
