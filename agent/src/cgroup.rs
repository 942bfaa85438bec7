//! The guest's cgroup tree (version 2) and its layout:
//!
//! ```text
//! /sys/fs/cgroup
//! ├── agent              the agent, alone
//! └── containers/<id>    one per container, made by the container library
//! ```
//!
//! The agent leaves the root group because a group whose children are controlled must hold no process itself.

use crate::id::Id;
use std::path::{Path, PathBuf};

/// Where the tree is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The group of all containers' groups.
pub const CONTAINERS: &str = "/sys/fs/cgroup/containers";

/// A container's group as a path of the file system.
pub fn container(id: &Id) -> PathBuf {
    Path::new(CONTAINERS).join(id.as_str())
}

/// A container's group as a path below the tree's root, which is how an OCI spec names it (`linux.cgroupsPath`).
pub fn container_in_spec(id: &Id) -> PathBuf {
    Path::new("/containers").join(id.as_str())
}
