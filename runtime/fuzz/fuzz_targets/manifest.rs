//! Any bytes as a manifest, an index or an image configuration: read, or refused.

#![no_main]

use isopod_runtime::image::{ImageConfiguration, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Manifest::parse(bytes, "", "fuzz");
    let _ = ImageConfiguration::parse(bytes);
});
