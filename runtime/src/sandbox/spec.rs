//! What a sandbox is to be, whatever API it was asked for by.
//!
//! Written by `cri` from RunPodSandbox's message; checked by `validate`, kept whole in the record, and
//! answered from there. Whoever asks for sandboxes by another API makes the same specification.

use crate::network::NetworkSource;
use crate::resources::Resources;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Everything that is asked for of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Unique on the node; a random one is chosen where the caller has none.
    #[serde(skip)]
    pub id: Option<String>,
    /// The pod; no other sandbox has the same.
    pub name: PodName,
    /// Names the VM's settings in the configuration; empty for the usual ones.
    pub handler: String,
    /// Name of the guest; empty for that of the node.
    pub hostname: String,
    /// The guest's resolver; empty for that of the node.
    pub dns: Dns,
    /// Settings of the guest's kernel, by name.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of all its containers together, where they are known.
    pub resources: Option<Resources>,
    /// What the VM may use beside them.
    pub overhead: Option<Resources>,
    /// The host's cgroup below which the sandbox's is made: a path, or the name of a systemd slice. Empty for
    /// the top.
    pub cgroup_parent: String,
    /// Directory of its containers' logs on the host.
    pub log_directory: Option<PathBuf>,
    /// For selection.
    pub labels: BTreeMap<String, String>,
    /// For whoever wrote them, and for the network's plugins.
    pub annotations: BTreeMap<String, String>,
    /// Where its network comes from.
    pub network: NetworkSource,
    /// How the client asked for namespaces.
    pub namespaces: AskedNamespaces,
}

/// What tells pods apart for Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its uid in Kubernetes.
    pub uid: String,
    /// Counts the sandboxes that the pod has had.
    pub attempt: u32,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// Settings of a resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of servers.
    pub servers: Vec<String>,
    /// Domains that names are looked up in.
    pub searches: Vec<String>,
    /// Options, as `resolv.conf` has them.
    pub options: Vec<String>,
}

/// How the client asked for namespaces. Only kept and answered: each container says itself which processes it
/// sees, and the users of a guest are its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedNamespaces {
    /// A pid namespace for each container, not one for all.
    pub pid_per_container: bool,
    /// The users of the node were asked for by name.
    pub users_of_node: bool,
}
