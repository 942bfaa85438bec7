//! The host's cgroups of pods, cgroup v2 only: one directory `isopod-ID` below the parent that kubelet names, which holds
//! the pod's VMM and whatever else works for it, so that kubelet's accounting and limits see the pod's true cost.
//!
//! Called by `sandbox`. It must not touch the parent: that is kubelet's.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Begin of the names of all our cgroups.
pub const PREFIX: &str = "isopod-";

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The parent is no path below the mount.
    #[error("cgroup parent {0:?} is not a plain path or slice name: it must not hold '..' or empty parts")]
    BadParent(String),
}

/// A pod's cgroup. It need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCgroup {
    path: PathBuf,
}

impl PodCgroup {
    /// The cgroup of the sandbox `id` below `parent`: a path (`/kubepods/pod1`), or the name of a systemd slice
    /// (`kubepods-pod1.slice`), whose dashes are levels. An empty parent is the root.
    ///
    /// # Errors
    /// [`CgroupError::BadParent`] where the parent leads out of the mount.
    pub fn new(parent: &str, id: &str) -> Result<Self, CgroupError> {
        let bad = || CgroupError::BadParent(parent.to_owned());
        let mut path = PathBuf::from(ROOT);
        let parts: Vec<&str> = parent.trim_matches('/').split('/').collect();
        if parts != [""] {
            if parts.iter().any(|part| matches!(*part, "" | "." | "..") || part.contains('\0')) {
                return Err(bad());
            }
            match parts.as_slice() {
                [slice] if slice.ends_with(".slice") => path.extend(expand_slice(slice).ok_or_else(bad)?),
                parts => path.extend(parts),
            }
        }
        path.push(format!("{PREFIX}{id}"));
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directories of a slice: `a-b.slice` lies in `a.slice` (systemd.slice(5)). `-.slice` is the root.
fn expand_slice(name: &str) -> Option<Vec<String>> {
    let stem = name.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(Vec::new());
    }
    let mut levels: Vec<String> = Vec::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return None;
        }
        prefix.push_str(part);
        levels.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(parent: &str) -> Option<String> {
        let cgroup = PodCgroup::new(parent, "1").ok()?;
        Some(cgroup.path().strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn path_parent_is_taken_as_it_is() {
        assert_eq!(path("/kubepods/besteffort/pod1").unwrap(), "kubepods/besteffort/pod1/isopod-1");
        assert_eq!(path("").unwrap(), "isopod-1");
        assert_eq!(path("/").unwrap(), "isopod-1");
    }

    #[test]
    fn slice_name_becomes_its_levels() {
        assert_eq!(
            path("kubepods-burstable-pod_1.slice").unwrap(),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_1.slice/isopod-1"
        );
        assert_eq!(path("/system.slice").unwrap(), "system.slice/isopod-1");
        assert_eq!(path("-.slice").unwrap(), "isopod-1");
    }

    #[test]
    fn parent_that_leaves_the_mount_is_refused() {
        for parent in ["../x", "a/../b", "a//b", "a--b.slice", "./a"] {
            assert!(path(parent).is_none(), "{parent}");
        }
    }
}
