//! `isopod-vmm`: one virtual machine in one jailed process.
//!
//! A boot, file by file: `main` closes what it inherited and enters the [`jail`]; [`control`] waits for the
//! boot request; [`builder`] makes [`memory`], the [`vm`], its [`devices`] on the [`bus`], the [`acpi`]
//! tables and the [`kernel`] and the VM's [`vmgenid`], and starts the [`vcpus`], a [`vcpu`] thread each; then
//! the event loop of [`virtio`] serves the devices and the [`server`] hands requests to the [`machine`],
//! until something calls [`exit`].
//!
//! A template ends as a [`snapshot`]; a pod's VM begins by its [`restore`] where there is one, as a clone,
//! and is given its [`working_set`].
//!
//! `README.md` beside this crate has the map.

// In tests, for the files of `fuzz_targets`, which are programs of libFuzzer that use this crate.
#[cfg(test)]
extern crate self as isopod_vmm;
#[cfg(test)]
extern crate self as libfuzzer_sys;
#[cfg(test)]
use fuzz_targets::{arbitrary, fuzz_target};

pub mod acpi;
pub mod builder;
pub mod bus;
pub mod confined;
pub mod console_log;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod early_console;
pub mod exit;
#[cfg(test)]
mod fuzz_targets;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
pub mod jail;
pub mod kernel;
pub mod layout;
pub mod log;
pub mod machine;
pub mod memory;
pub mod pluggable;
pub mod ports;
pub mod power;
pub mod restore;
pub mod seccomp;
pub mod server;
pub mod snapshot;
pub mod sys;
pub mod vcpu;
pub mod vcpus;
pub mod virtio;
pub mod vm;
pub mod vmgenid;
pub mod working_set;

#[cfg(test)]
mod tests {
    /// In release builds too: the profiles in the workspace's `Cargo.toml` say so.
    #[test]
    fn number_that_does_not_fit_is_a_panic() {
        let (most, one) = (std::hint::black_box(u8::MAX), std::hint::black_box(1));
        assert!(std::panic::catch_unwind(|| most + one).is_err());
    }
}
