//! The node's side of Isopod, as one library: the CRI door, and the house behind it.
//!
//! Imports go one way, and a test holds them to it (`tests/import_direction.rs`):
//!
//! ```text
//! cri  ->  sandbox, container, image  ->  hypervisor, agent_client, network, storage, cgroup  ->  store, undo, config
//! ```

pub mod network;
pub mod store;
pub mod undo;
