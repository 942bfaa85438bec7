//! The node's side of Isopod, as one library: the CRI door, and the house behind it.
//!
//! Imports go one way, and a test holds them to it (`tests/import_direction.rs`):
//!
//! ```text
//! serve, check  ->  cri  ->  sandbox, container, image  ->  hypervisor, agent_client, network, cgroup
//!                                                       ->  store, undo, config, id, trace
//! ```
//!
//! Among the middle ones `container` may use `sandbox` and `image`; `sandbox` uses neither: it tells what happens to it
//! by [`sandbox::SandboxEvent`].

pub mod agent_client;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod cri;
pub mod hypervisor;
pub mod id;
pub mod network;
pub mod sandbox;
pub mod serve;
pub mod store;
pub mod undo;
