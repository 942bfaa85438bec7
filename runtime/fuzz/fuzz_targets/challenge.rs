//! Any text as the `WWW-Authenticate` header of a registry: what is read of it, the header holds.

#![no_main]

use isopod_runtime::image::Challenge;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = std::str::from_utf8(bytes) else { return };
    if let Some(Challenge::Bearer { realm, service, scope }) = Challenge::parse(header) {
        let read = [Some(realm), service, scope];
        assert!(read.iter().flatten().map(String::len).sum::<usize>() <= header.len());
    }
});
