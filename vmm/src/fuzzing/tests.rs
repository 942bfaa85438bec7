//! The targets under proptest, on the stable compiler. `PROPTEST_CASES` sets how long.

use proptest::prelude::*;

use super::*;

/// Bytes that a target draws from.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..3000)
}

#[test]
fn targets_survive_no_bytes_and_many_of_one_kind() {
    for (_, target) in TARGETS {
        target(&[]);
        for byte in [0, 1, 7, 0xff] {
            target(&[byte; 2000]);
        }
    }
}

/// Every target has a file for libFuzzer.
#[test]
fn targets_are_fuzzed_too() {
    for (name, _) in TARGETS {
        let file = format!("{}/fuzz/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(&format!("fuzzing::{name}")), "{file}");
    }
}

proptest! {
    #[test]
    fn net_survives_any_bytes(bytes in any_bytes()) {
        net(&bytes);
    }

    #[test]
    fn balloon_survives_any_bytes(bytes in any_bytes()) {
        balloon(&bytes);
    }

    #[test]
    fn mem_survives_any_bytes(bytes in any_bytes()) {
        mem(&bytes);
    }

    #[test]
    fn console_survives_any_bytes(bytes in any_bytes()) {
        console(&bytes);
    }

    #[test]
    fn saved_state_survives_any_bytes(bytes in any_bytes()) {
        saved_state(&bytes);
    }

    #[test]
    fn control_survives_any_bytes(bytes in any_bytes()) {
        control(&bytes);
    }
}
