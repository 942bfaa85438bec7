//! Any bytes as a manifest, an index or an image configuration: read within bounds, or refused.

#![no_main]

use isopod_runtime::image::{ImageConfiguration, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Manifest::parse(bytes, "", "fuzz") {
        Ok(Manifest::Image { layers, .. }) => assert!(layers.len() <= 256),
        Ok(Manifest::Index(entries)) => assert!(entries.len() <= 4096),
        Err(_) => {}
    }
    if let Ok(read) = ImageConfiguration::parse(bytes) {
        let texts = [&read.env, &read.entrypoint, &read.cmd].into_iter().flatten().chain(&read.volumes);
        assert!(texts.map(String::len).sum::<usize>() <= 1 << 20);
    }
});
