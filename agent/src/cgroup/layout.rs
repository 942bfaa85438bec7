//! The guest's cgroup tree (version 2) and its layout:
//!
//! ```text
//! /sys/fs/cgroup
//! ├── agent                  the agent, alone
//! └── containers/<id>        one per container, with its limits and no process
//!     └── own                its processes; the root of its cgroup namespace
//! ```
//!
//! Root of a container may write to the files of the group that is the root of its cgroup namespace: not
//! within that namespace, but from a user and a cgroup namespace of its own below it. So the limits that hold
//! are one group higher, where no container sees them. The group below has the same ones, for programs that
//! look for theirs.
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

/// The group in a container's group that holds its processes.
pub const OWN: &str = "own";

/// A container's group as a path of the file system.
pub fn container(id: &Id) -> PathBuf {
    Path::new(CONTAINERS).join(id.as_str())
}

/// The group of a container's processes as a path below the tree's root, which is how an OCI spec names it
/// (`linux.cgroupsPath`).
pub fn container_in_spec(id: &Id) -> PathBuf {
    Path::new("/containers").join(id.as_str()).join(OWN)
}

/// Makes the layout in a fresh tree and hands every controller down to the containers' groups. On failure
/// answers the path that could not be made or written.
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
    for group in [ROOT, CONTAINERS] {
        hand_down(Path::new(group)).map_err(at(group))?;
    }
    Ok(())
}

/// Gives the groups below a group, which must hold no process, every controller that it has itself.
pub fn hand_down(group: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(group.join("cgroup.controllers"))?;
    fs::write(group.join("cgroup.subtree_control"), enable_all(&controllers))
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
