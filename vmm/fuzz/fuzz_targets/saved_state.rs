//! See `isopod_vmm::fuzzing::saved_state`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isopod_vmm::fuzzing::saved_state(bytes));
