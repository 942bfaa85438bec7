//! What the converter writes, against the checker that belongs to the file system.

use crate::random::Random;
use crate::reader::zoo;
use crate::tar::{Entry, archive};
use crate::{generate, mkfs};
use isopod_runtime::image::convert::{Limits, convert};
use isopod_runtime::image::overlay::Overlay;
use std::fs::File;
use std::path::Path;

/// Random layers that are checked.
const LAYERS: usize = 60;

/// Whether the archive could be converted.
pub fn converted(entries: &[Entry], path: &Path) -> bool {
    let limits = Limits { output: 1 << 30, names: 1 << 26 };
    let lower = || Ok(Overlay::new(Vec::new()));
    convert(&archive(entries)[..], File::create_new(path).unwrap(), lower, limits).is_ok()
}

#[test]
pub fn converted_layer_of_every_kind_of_file_passes_fsck() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let mut entries = zoo();
    entries.extend((0..3000).map(|number| Entry::file(format!("many/{number:0>60}"), "content")));
    assert!(converted(&entries, &path));
    assert_eq!(mkfs::check(&path), Ok(()));
}

#[test]
fn random_converted_layers_pass_fsck() {
    let seed = Random::seed();
    println!("seed {seed}: set ISOPOD_SEED to repeat");
    let mut random = Random::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for number in 0..LAYERS {
        let path = directory.path().join(format!("image-{number}"));
        let entries: Vec<_> = (0..5).map(|_| generate::entry(&mut random)).collect();
        if converted(&entries, &path) {
            checked += 1;
            assert_eq!(mkfs::check(&path), Ok(()), "{entries:?}");
        }
    }
    assert!(checked > LAYERS / 10, "only {checked} layers could be converted");
}
