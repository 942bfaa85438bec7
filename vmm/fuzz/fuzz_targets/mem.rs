//! See `isopod_vmm::fuzzing::mem`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isopod_vmm::fuzzing::mem(bytes));
