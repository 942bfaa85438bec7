//! Runs the fuzz targets of `vmm/fuzz` on the stable compiler, as unit tests: a second each, or as
//! `FUZZ_SECONDS` says.
//!
//! The files are libFuzzer's, as they are: in tests this crate stands in for `libfuzzer_sys`, and for itself
//! by its name.

#[path = "../../tests/fuzz/exercise.rs"]
mod exercise;

mod stand_in {
    pub(crate) use ::arbitrary;

    /// In place of libFuzzer's: the body becomes a function, whose input is made of bytes.
    macro_rules! fuzz_target {
        (|$input:ident: $kind:ty| $body:expr) => {
            pub fn run(bytes: &[u8]) {
                let bytes = $crate::arbitrary::Unstructured::new(bytes);
                if let Ok($input) = <$kind as $crate::arbitrary::Arbitrary>::arbitrary_take_rest(bytes) {
                    $body
                }
            }
        };
    }
    pub(crate) use fuzz_target;
}
pub(crate) use stand_in::{arbitrary, fuzz_target};

/// The targets as modules, and a test for each.
macro_rules! targets {
    ($($path:literal $name:ident;)*) => {
        $(
            #[allow(unused_attributes, reason = "no_main is for libFuzzer's programs")]
            #[path = $path]
            mod $name;
        )*

        mod tests {
            use super::*;

            $(
                #[test]
                fn $name() {
                    exercise::exercise(stringify!($name), &[], super::$name::run);
                }
            )*
        }

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    "../fuzz/fuzz_targets/balloon.rs" balloon;
    "../fuzz/fuzz_targets/block.rs" block;
    "../fuzz/fuzz_targets/console.rs" console;
    "../fuzz/fuzz_targets/control.rs" control;
    "../fuzz/fuzz_targets/mem.rs" mem;
    "../fuzz/fuzz_targets/mmio.rs" mmio;
    "../fuzz/fuzz_targets/net.rs" net;
    "../fuzz/fuzz_targets/saved_state.rs" saved_state;
    "../fuzz/fuzz_targets/vsock.rs" vsock;
}

#[test]
fn every_target_runs_here() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/fuzz_targets");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let targets = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut found: Vec<_> =
        targets.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    found.sort();
    assert_eq!(found, NAMES, "a target without a line in this file");
}
