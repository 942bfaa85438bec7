//! The guest's cgroup tree, and the groups of containers in it.
//!
//! | module | |
//! |---|---|
//! | [`layout`] | where the groups of the agent and of containers are |
//! | [`group`] | one container's groups: made, limited, killed, removed |
//! | [`limits`] | OCI resources as values of cgroup files; pure |
//! | [`devices`] | OCI device rules as a BPF program; pure |
//! | [`tasks`] | how many processes and threads containers may have |
//! | [`huge_pages`] | pages for limits of huge ones |
//!
//! Called by `init`, `container`, `stats` and the one-shot child. It knows containers by their ids alone.

mod devices;
mod group;
pub mod huge_pages;
pub mod layout;
mod limits;
pub mod tasks;

pub use group::{Cgroup, CgroupError};
