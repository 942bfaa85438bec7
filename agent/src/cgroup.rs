//! The guest's cgroup tree (version 2) and its layout:
//!
//! ```text
//! /sys/fs/cgroup
//! ├── agent              the agent, alone
//! └── containers/<id>    one per container, made by the container library
//! ```
//!
//! The agent leaves the root group so that its own memory and time are not counted as the guest kernel's.

use crate::id::Id;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the tree is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The agent's own group.
const AGENT: &str = "/sys/fs/cgroup/agent";

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

/// Makes the layout in a fresh tree and hands every controller down to the containers' groups. On failure answers the path
/// that could not be made or written.
pub fn prepare() -> Result<(), (String, io::Error)> {
    let at = |path: &str| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    for group in [AGENT, CONTAINERS] {
        fs::create_dir(group).map_err(at(group))?;
    }
    // Zero stands for the process that writes.
    fs::write(format!("{AGENT}/cgroup.procs"), "0").map_err(at(AGENT))?;
    let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers")).map_err(at(ROOT))?;
    let enable = enable_all(&controllers);
    for group in [ROOT, CONTAINERS] {
        fs::write(format!("{group}/cgroup.subtree_control"), &enable).map_err(at(group))?;
    }
    Ok(())
}

/// What to write to `cgroup.subtree_control` so that children get every controller of `cgroup.controllers`.
fn enable_all(controllers: &str) -> String {
    controllers.split_whitespace().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_handed_down() {
        assert_eq!(enable_all("cpuset cpu io memory pids\n"), "+cpuset +cpu +io +memory +pids");
        assert_eq!(enable_all("\n"), "");
    }
}
