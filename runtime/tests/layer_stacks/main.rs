//! Random stacks of layers, converted as pulled layers are, against a model of what containerd makes of them.
//!
//! ```text
//! generate -> tar -> isopod_runtime::image::convert -> EROFS files -> observe: overlay --\
//!     \-----> model: a file system in memory --------------------------------------------> equal?
//! ```
//!
//! A run prints its seed, and `ISOPOD_SEED` repeats it; `ISOPOD_STACKS` says how many stacks it makes. Needs no root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod generate;
mod model;
mod observe;
mod random;
mod tar;

use isopod_runtime::image::convert::{ConvertError, Limits, convert};
use isopod_runtime::image::erofs::Erofs;
use isopod_runtime::image::overlay::Overlay;
use model::{Layer, Tree};
use random::Random;
use std::fs::File;
use tar::Entry;

/// Stacks of a run that says nothing else: some seconds on a slow machine.
const STACKS: u64 = 400;

const MOST_LAYERS: usize = 4;
const MOST_ENTRIES: usize = 14;

/// The topmost first, opened anew: a layer's file is read while the next ones are made.
fn overlay(layers: &[File]) -> Overlay {
    let open = |file: &File| Erofs::open(file.try_clone().unwrap()).unwrap();
    Overlay::new(layers.iter().rev().map(open).collect())
}

/// The layer's file, made as a pull makes it but for the jail.
fn build_layer(entries: &[Entry], lower: &[File]) -> Result<File, ConvertError> {
    let output = tempfile::tempfile().unwrap();
    let limits = Limits { output: 1 << 30, names: 1 << 26 };
    convert(&tar::archive(entries)[..], output.try_clone().unwrap(), || Ok(overlay(lower)), limits)?;
    Ok(output)
}

/// A layer that the model takes. Entries that it refuses are left out; each is tried as the end of a layer of its own,
/// which must then be refused too.
fn random_layer(
    random: &mut Random,
    number: usize,
    lower: Option<&Tree>,
    files: &[File],
) -> (Vec<Entry>, Tree) {
    let mut entries = Vec::new();
    for _ in 0..random.below(MOST_ENTRIES) {
        entries.push(generate::entry(random));
        let mut layer = Layer::new(number, lower);
        let refused = entries.iter().find_map(|entry| layer.apply(entry).err());
        if let Some(reason) = refused {
            let built = build_layer(&entries, files);
            assert!(
                matches!(built, Err(ConvertError::Entry { .. })),
                "{reason}: not refused\n{}",
                listing(&entries)
            );
            entries.pop();
        }
    }
    let mut layer = Layer::new(number, lower);
    entries.iter().for_each(|entry| layer.apply(entry).unwrap());
    (entries, layer.finish())
}

/// Makes one stack and compares after each layer.
fn check_stack(seed: u64) {
    let mut random = Random::new(seed);
    let (mut tree, mut files, mut story) = (None, Vec::new(), String::new());
    for number in 0..=random.below(MOST_LAYERS) {
        let (entries, result) = random_layer(&mut random, number, tree.as_ref(), &files);
        story += &format!("layer {number}:\n{}", listing(&entries));
        let file = build_layer(&entries, &files).unwrap_or_else(|error| panic!("{error}\n{story}"));
        files.push(file);
        let differences = observe::differences(&result, &overlay(&files), files.len());
        assert!(differences.is_empty(), "{}\n{story}", differences.join("\n"));
        tree = Some(result);
    }
}

fn listing(entries: &[Entry]) -> String {
    let line = |entry: &Entry| {
        let (kind, name) = (char::from(entry.kind), entry.name.escape_ascii());
        let (link, device, mode, owner) =
            (entry.link.escape_ascii(), entry.device, entry.mode, (entry.uid, entry.gid));
        let attributes =
            entry.attributes.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect::<Vec<_>>();
        let format = entry.format;
        format!(
            "  {kind:?} \"{name}\" -> \"{link}\" {device:?} {mode:04o} {owner:?} {attributes:?} {format:?}\n"
        )
    };
    entries.iter().map(line).collect()
}

#[test]
fn random_stacks_are_what_containerd_makes_of_them() {
    let seed = Random::seed();
    let count = std::env::var("ISOPOD_STACKS").map_or(STACKS, |count| count.parse().expect("a number"));
    for number in 0..count {
        let seed = seed + number;
        let checked = std::panic::catch_unwind(|| check_stack(seed));
        assert!(checked.is_ok(), "stack {number} differs: ISOPOD_SEED={seed} ISOPOD_STACKS=1 repeats it");
    }
    println!("{count} stacks from seed {seed} on");
}
