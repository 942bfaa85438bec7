//! Random stacks of layers, converted as pulled layers are, against a model of what containerd makes of them.
//!
//! ```text
//! generate -> tar -> isopod_runtime::image::convert -> EROFS files -> reading, mounting --\
//!     \-----> model: a file system in memory ---------------------------------------------> observe: equal?
//! ```
//!
//! A run prints its seed, and `ISOPOD_SEED` repeats it; `ISOPOD_STACKS` says how many stacks it makes. Needs no root, but to
//! look at stacks through the kernel as well.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod generate;
mod model;
mod mounting;
mod observe;
mod random;
mod reading;
mod tar;

use isopod_runtime::image::convert::{ConvertError, Limits, convert};
use isopod_runtime::image::erofs::Erofs;
use isopod_runtime::image::overlay::Overlay;
use model::{Layer, Tree};
use random::Random;
use std::fs::File;
use std::path::PathBuf;
use tar::Entry;

/// Stacks of a run that says nothing else: some seconds on a slow machine.
const STACKS: u64 = 400;

/// Stacks that are mounted, which takes longer.
const MOUNTED_STACKS: u64 = 40;

const MOST_LAYERS: usize = 4;
const MOST_ENTRIES: usize = 14;

/// Layers' files, the lowest first, by their numbers in a directory.
struct Files {
    directory: tempfile::TempDir,
    open: Vec<File>,
}

impl Files {
    fn path(&self, number: usize) -> PathBuf {
        self.directory.path().join(number.to_string())
    }

    /// Makes the next layer's file as a pull makes it, but for the jail.
    fn build(&self, entries: &[Entry]) -> Result<File, ConvertError> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let output = options.open(self.path(self.open.len())).unwrap();
        let limits = Limits { output: 1 << 30, names: 1 << 26 };
        let archive = tar::archive(entries);
        convert(&archive[..], output.try_clone().unwrap(), || Ok(self.overlay()), limits)?;
        Ok(output)
    }

    fn overlay(&self) -> Overlay {
        let open = |file: &File| Erofs::open(file.try_clone().unwrap()).unwrap();
        Overlay::new(self.open.iter().rev().map(open).collect())
    }
}

/// A layer that the model takes. Entries that it refuses are left out; each is tried as the end of a layer of its own,
/// which must then be refused too.
fn random_layer(
    random: &mut Random,
    number: usize,
    lower: Option<&Tree>,
    files: &Files,
) -> (Vec<Entry>, Tree) {
    let mut entries = Vec::new();
    for _ in 0..random.below(MOST_ENTRIES) {
        entries.push(generate::entry(random));
        let mut layer = Layer::new(number, lower);
        let refused = entries.iter().find_map(|entry| layer.apply(entry).err());
        if let Some(reason) = refused {
            let built = files.build(&entries);
            let story = listing(&entries);
            assert!(matches!(built, Err(ConvertError::Entry { .. })), "{reason}: not refused\n{story}");
            entries.pop();
        }
    }
    let mut layer = Layer::new(number, lower);
    entries.iter().for_each(|entry| layer.apply(entry).unwrap());
    (entries, layer.finish())
}

/// Makes one stack and compares after each layer; where `mount` is set, also as the kernel shows the whole stack.
fn check_stack(seed: u64, mount: bool) {
    let mut random = Random::new(seed);
    let mut files = Files { directory: tempfile::tempdir().unwrap(), open: Vec::new() };
    let (mut tree, mut story) = (None, String::new());
    let last = random.below(MOST_LAYERS);
    for number in 0..=last {
        let (entries, result) = random_layer(&mut random, number, tree.as_ref(), &files);
        story += &format!("layer {number}:\n{}", listing(&entries));
        let file = files.build(&entries).unwrap_or_else(|error| panic!("{error}\n{story}"));
        files.open.push(file);
        let count = files.open.len();
        let mut differences = observe::differences(&result, reading::paths(&files.overlay(), count));
        if mount && number == last {
            let paths: Vec<_> = (0..count).map(|number| files.path(number)).collect();
            let seen = observe::differences(&result, mounting::paths(&paths));
            differences.extend(seen.into_iter().map(|line| format!("mounted: {line}")));
        }
        assert!(differences.is_empty(), "{}\n{story}", differences.join("\n"));
        tree = Some(result);
    }
}

fn check_stacks(count: u64, mount: bool) {
    let seed = Random::seed();
    let count = std::env::var("ISOPOD_STACKS").map_or(count, |count| count.parse().expect("a number"));
    for number in 0..count {
        let seed = seed + number;
        let checked = std::panic::catch_unwind(|| check_stack(seed, mount));
        assert!(checked.is_ok(), "stack {number} differs: ISOPOD_SEED={seed} ISOPOD_STACKS=1 repeats it");
    }
    println!("{count} stacks from seed {seed} on");
}

fn listing(entries: &[Entry]) -> String {
    let line = |entry: &Entry| {
        let Entry { device, mode, uid, gid, mtime, format, .. } = entry;
        let (kind, name, link) =
            (char::from(entry.kind), entry.name.escape_ascii(), entry.link.escape_ascii());
        let attributes =
            entry.attributes.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect::<Vec<_>>();
        format!(
            "  {kind:?} \"{name}\" -> \"{link}\" {device:?} {mode:04o} {uid}:{gid} {mtime:?} {attributes:?} {format:?}\n"
        )
    };
    entries.iter().map(line).collect()
}

#[test]
fn random_stacks_are_what_containerd_makes_of_them() {
    check_stacks(STACKS, false);
}

#[test]
fn random_stacks_are_so_in_the_kernel_too() {
    if mounting::possible() {
        check_stacks(MOUNTED_STACKS, true);
    }
}
