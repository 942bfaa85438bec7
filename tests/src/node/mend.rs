//! Mends one fault of the pinned QEMU, which otherwise crashes guests in the node now and then.
//!
//! When a hypervisor in an emulated AMD CPU injects an interrupt into its guest, QEMU's `helper_vmrun`
//! (`target/i386/tcg/system/svm_helper.c`) delivers it at once, but leaves its vector in the field for exceptions that are still to be
//! delivered. If another thread asks the emulated CPU to pause before anything else has overwritten that field, `cpu_handle_interrupt`
//! keeps it, and the interrupt is delivered a second time, while interrupts are off: in the middle of the first entry, where the
//! guest's kernel cannot take it. Versions from 7.2 to 10.2 have the fault. docs/decisions/0004 has the evidence.
//!
//! The store is taken out of the program, in the copy in the cache. The package is pinned by its digest, so the place is known.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// The end of the case `SVM_EVTINJ_TYPE_INTR`: four stores, to `error_code`, `exception_index`, `exception_is_int` and
/// `exception_next_eip`.
const STORES: [&[u8]; 4] = [
    b"\x44\x89\xab\xe0\x33\x00\x00",
    b"\x89\xb3\x10\xd7\xff\xff",
    b"\xc7\x83\xe4\x33\x00\x00\x00\x00\x00\x00",
    b"\x48\xc7\x83\xe8\x33\x00\x00\xff\xff\xff\xff",
];
/// Does nothing, in as many bytes as the second store has.
const NOTHING: &[u8] = b"\x66\x0f\x1f\x44\x00\x00";

/// Mends the program.
pub fn mend(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mended = without_the_store(bytes).with_context(|| format!("cannot mend {}", program.display()))?;
    fs::write(program, mended).with_context(|| format!("cannot write {}", program.display()))
}

fn without_the_store(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let wanted = STORES.concat();
    let mut places = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&wanted));
    let place = places.next().context("it is not the program that is known")?;
    ensure!(places.next().is_none(), "the place is not unique");
    let store = place + STORES[0].len();
    bytes[store..store + NOTHING.len()].copy_from_slice(NOTHING);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_store_is_taken_out() {
        let mended = without_the_store([b"before", &STORES.concat()[..], b"after"].concat()).unwrap();
        let expected = [b"before", STORES[0], NOTHING, STORES[2], STORES[3], b"after"].concat();
        assert_eq!(mended, expected);
    }

    #[test]
    fn another_program_is_refused() {
        assert!(without_the_store(vec![0x44; 100]).is_err());
        assert!(without_the_store([STORES.concat(), STORES.concat()].concat()).is_err());
    }
}
