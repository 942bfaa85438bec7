//! What users install has no faults that can be ordered: `isopod` does not even know the name of the variable
//! by which `isopod-with-faults`, the same daemon for the failure tests, is told of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;

const VARIABLE: &[u8] = b"ISOPOD_FAULT_FILE";

fn names_the_variable(program: &str) -> bool {
    fs::read(program).unwrap().windows(VARIABLE.len()).any(|window| window == VARIABLE)
}

#[test]
fn only_the_program_for_failure_tests_reads_the_variable_of_faults() {
    assert!(
        names_the_variable(env!("CARGO_BIN_EXE_isopod-with-faults")),
        "it is looked for in the wrong way"
    );
    assert!(!names_the_variable(env!("CARGO_BIN_EXE_isopod")), "the released program can be made to fail");
}
