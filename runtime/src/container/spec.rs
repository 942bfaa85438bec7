//! What a container is made of, in the words of the OCI runtime specification, and what that lacks.
//!
//! Written by `cri` from a request and an image's configuration; read by `create` and `request`. Nothing here
//! names a client's API: whoever asks for containers by another one makes the same specification.

use super::log_file::LogPath;
use crate::resources::Resources;
use isopod_protocols::agent::User;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything that is asked for of a container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Unique on the node; a random one is chosen where the caller has none.
    pub id: Option<String>,
    /// Process, mounts and confinement. `create` sets the cgroup's path, the limits in `resources`, and the
    /// mounts of `volumes`; the agent adds the path of the root, the resolved user and the pid namespace.
    pub oci: Spec,
    /// Environment of its processes. Beside `oci`, as JSON has no place for bytes that are not UTF-8.
    pub env: Vec<Vec<u8>>,
    /// The first process's user. Names are resolved in the guest, where the files of the root are.
    pub user: User,
    /// Which processes its own can see.
    pub pid_namespace: PidNamespace,
    /// What its root is made of, the lowest first.
    pub root: Vec<RootSource>,
    /// Directories of the root that the agent copies to the pod's scratch disk: absolute, clean, sorted.
    pub volumes: Vec<String>,
    /// Its first process's streams.
    pub stdio: Stdio,
    /// Asks its first process to end; a number of Linux's.
    pub stop_signal: i32,
    /// Its limits.
    pub resources: Resources,
    /// What is only kept and answered.
    pub description: Description,
}

/// Which processes those of a container can see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    #[default]
    Container,
    /// All of the pod.
    Pod,
    /// Those of the container with this id.
    Target(String),
}

/// A part of a container's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A file system image, which is mapped read-only into the pod's disk. Containers of a pod share those of
    /// one digest.
    Extent {
        /// Digest of the layer upon those below it.
        chain_id: String,
        /// The file. It may be removed once it is mapped.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

/// The streams of a container's first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Whether standard input can be attached to; else it is empty.
    pub stdin: bool,
    /// Standard input ends with the first client that leaves it.
    pub stdin_once: bool,
    /// The process has a terminal, and so one output stream.
    pub terminal: bool,
    /// Where its output goes.
    pub sink: StdioSink,
}

/// Where the output of a container goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StdioSink {
    /// It is read and dropped, so that the container is not held up.
    #[default]
    Discard,
    /// A file in the format that kubelet reads.
    CriLog(LogPath),
}

impl Stdio {
    /// The file that output is written to, if it is one.
    pub fn log_path(&self) -> Option<&LogPath> {
        match &self.sink {
            StdioSink::CriLog(path) => Some(path),
            StdioSink::Discard => None,
        }
    }
}

/// What the record of a container keeps for those who ask for it. Only name and attempt mean anything here:
/// together they are unique in a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its name in the pod.
    pub name: String,
    /// Counts the containers of that name that the pod has had.
    pub attempt: u32,
    /// For selection.
    pub labels: BTreeMap<String, String>,
    /// For whoever wrote them.
    pub annotations: BTreeMap<String, String>,
    /// The image it was made from, by all its names.
    pub image: ImageNames,
    /// Its mounts as they were asked for.
    pub mounts: Vec<AskedMount>,
}

/// The image a container was made from, by all its names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNames {
    /// As the pod named it.
    pub asked: String,
    /// By digest where it has one, else its id.
    pub reference: String,
    /// Digest of its configuration.
    pub id: String,
}

/// A mount as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedMount {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node; empty for an image.
    pub host_path: String,
    /// Image whose files are mounted; empty for a path of the node.
    pub image: String,
    /// Path in that image; empty for all of it.
    pub image_sub_path: String,
    /// Not to be written through.
    pub readonly: bool,
    /// Nor through the mounts below it.
    pub recursive_read_only: bool,
    /// Which later mounts are seen on the other side.
    pub propagation: Propagation,
}

/// Which later mounts below a mount are seen on its other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// Those of the node, in the container.
    HostToContainer,
    /// Those of either side.
    Bidirectional,
}
