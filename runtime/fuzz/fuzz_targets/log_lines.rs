//! Any bytes in any chunks as the output of a container: the log holds all of them and nothing else, each
//! record behind a head that the process did not write.

#![no_main]

use isopod_runtime::container::{Lines, MAX_LINE};
use libfuzzer_sys::fuzz_target;
use std::time::UNIX_EPOCH;

const HEAD: &[u8] = b"1970-01-01T00:00:00.000000000Z stdout ";

fuzz_target!(|bytes: &[u8]| {
    let Some((&size, output)) = bytes.split_first() else { return };
    let mut lines = Lines::new("stdout");
    let mut log = Vec::new();
    for chunk in output.chunks(1 + usize::from(size) * 100) {
        log.extend(lines.feed(chunk, UNIX_EPOCH));
        assert!(lines.pending() <= MAX_LINE);
    }
    log.extend(lines.finish(UNIX_EPOCH));
    let mut content = Vec::new();
    for record in log.split_inclusive(|&byte| byte == b'\n') {
        let rest = record.strip_prefix(HEAD).expect("the stream's head");
        let (tag, line) = rest.split_at(2);
        assert!(line.len() <= MAX_LINE + 1);
        match tag {
            b"F " => content.extend_from_slice(line),
            b"P " => content.extend_from_slice(&line[..line.len() - 1]),
            _ => panic!("a tag of no kind"),
        }
    }
    // The last line has an end in the log, whether it had one or not.
    let end: &[u8] = if output.last().is_none_or(|&last| last == b'\n') { b"" } else { b"\n" };
    assert!(content == [output, end].concat());
});
