//! The node's side of Isopod, as one library: the CRI service, and the core that it translates to.
//!
//! Imports go one way, and a test holds them to it (`tests/import_direction.rs`):
//!
//! ```text
//! command -> serve, check -> cri -> pod -> container -> sandbox -> hypervisor, agent_client, network, cgroup,
//!    |       |                +--> image                             scratch, host_users
//!    |       +-> preparation -> container
//!    +-> trace
//! all of them -> store, undo, config, id, listing, lock, resources, hostile_text, private, wall_clock,
//!                cpu_list, cpu_rate, oom_score
//! ```
//!
//! The CRI's messages are used in `cri` alone, which translates them into [`sandbox::SandboxSpec`] and
//! [`container::ContainerSpec`]. `sandbox` does not use `container`: it tells what happens to it by
//! [`sandbox::SandboxEvent`]. `agent_client` uses `hypervisor`, which is given what a template's guest must
//! do: `preparation`.

// In tests, for the files of `fuzz_targets`, which are programs of libFuzzer that use this crate.
#[cfg(test)]
extern crate self as isopod_runtime;
#[cfg(test)]
extern crate self as libfuzzer_sys;
#[cfg(test)]
use fuzz_targets::fuzz_target;

pub mod agent_client;
pub mod cgroup;
pub mod check;
pub mod command;
pub mod config;
pub mod container;
pub mod cpu_list;
pub mod cpu_rate;
pub mod cri;
#[cfg(test)]
mod fuzz_targets;
pub mod host_users;
pub mod hostile_text;
pub mod hypervisor;
pub mod id;
pub mod image;
pub mod listing;
pub mod lock;
pub mod network;
pub mod oom_score;
pub mod pod;
pub mod preparation;
pub mod private;
pub mod resources;
pub mod sandbox;
pub mod scratch;
pub mod serve;
pub mod store;
pub mod trace;
pub mod undo;
pub mod wall_clock;

#[cfg(test)]
mod tests {
    /// In release builds too: the profiles in the workspace's `Cargo.toml` say so.
    #[test]
    fn number_that_does_not_fit_is_a_panic() {
        let (most, one) = (std::hint::black_box(u8::MAX), std::hint::black_box(1));
        assert!(std::panic::catch_unwind(|| most + one).is_err());
    }
}
