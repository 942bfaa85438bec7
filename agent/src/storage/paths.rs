//! Where the parts of one container's root are. Pure: `rootfs` and `volume` make and delete them.

use crate::id::Id;
use isopod_protocols::guest;
use std::path::{Path, PathBuf};

/// Where roots are mounted.
const ROOTS: &str = "/run/isopod/roots";

/// The directories of one container's root, all made by the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootPaths {
    /// On scratch: upper and work directories.
    pub writable: PathBuf,
    /// What the container wrote.
    pub upper: PathBuf,
    /// Overlay's own.
    pub work: PathBuf,
    /// Empty; what is to be deleted is moved here.
    pub trash: PathBuf,
    /// Volumes of the image, by number; absent where it has none.
    pub volumes: PathBuf,
    /// Empty; the only layer of an image that has none.
    pub bottom: PathBuf,
    /// Where the root is mounted.
    pub root: PathBuf,
}

impl RootPaths {
    /// The directories of container `id`; none of them need exist.
    pub fn of(id: &Id) -> RootPaths {
        let writable = Path::new(guest::SCRATCH).join(id.as_str());
        RootPaths {
            upper: writable.join("upper"),
            work: writable.join("work"),
            trash: writable.join("trash"),
            volumes: guest::volumes(id.as_str()).into(),
            bottom: writable.join("bottom"),
            root: Path::new(ROOTS).join(id.as_str()),
            writable,
        }
    }
}
