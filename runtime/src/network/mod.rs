//! A pod's network: a namespace, the CNI plugins' work in it, and the link into the VM. Or a namespace that
//! somebody else made and takes down, of which only the link into the VM is ours.
//!
//! ```text
//!            host namespace | the pod's namespace           | guest
//!   bridge, routes ... <- veth -> eth0 <= redirect => tap0  <- virtio-net -> eth0
//! ```
//!
//! Called by `sandbox`. What a teardown needs is on disk before the first plugin runs, so a killed daemon's pods can
//! still be torn down, as can pods whose configuration has changed since.

mod addresses;
mod cni;
mod conflist;
mod joined;
mod link;
mod netns;
mod routes;
mod sys;

pub use cni::CniError;
#[cfg(any(test, feature = "testing"))]
pub use cni::addresses;
#[cfg(any(test, feature = "testing"))]
pub use conflist::Conflist as NetworkList;
pub use conflist::ConflistError;
pub use link::LinkError;
#[cfg(any(test, feature = "testing"))]
pub use link::listed;
pub use netns::NetnsError;
pub use routes::Unsupported;

use crate::store::{Collection, Durability, StoreError};
use crate::undo::{Injected, Undo};
use cni::{Invocation, Plugins};
use conflist::Conflist;
use isopod_protocols::agent::Interface;
use joined::Joined;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::{Instrument, info_span};

/// Why a pod's network could not be set up, checked or torn down.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No usable CNI configuration.
    #[error(transparent)]
    Conflist(#[from] ConflistError),
    /// A plugin failed.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The link into the VM.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The record on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The plugins gave no address.
    #[error("CNI network {0:?} gave the pod no address: check its ipam section")]
    NoAddress(String),
    /// Whoever made the namespace gave no address.
    #[error("network namespace {0} has no address on its interface: set its network up before the pod")]
    EmptyNamespace(PathBuf),
    /// The namespace is the one that the daemon runs in.
    #[error("network namespace {0} is the node's own: a VM cannot share it; give the pod one of its own")]
    NodeNamespace(PathBuf),
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// Where networks are described and their plugins found.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Directory of `.conflist` files.
    pub conf_dir: PathBuf,
    /// Directories of plugin programs.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory of this module's own records; lasts as long as the machine runs.
    pub state_dir: PathBuf,
    /// Directory of namespace mounts.
    pub netns_dir: PathBuf,
    /// Kubernetes namespace to name of the CNI network for its pods; others use the first network.
    pub networks: BTreeMap<String, String>,
    /// Time limit of one plugin call.
    pub plugin_timeout: Duration,
}

/// The pod whose network is set up.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// The sandbox's id.
    pub sandbox_id: String,
    /// Its name in Kubernetes.
    pub name: String,
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its uid in Kubernetes.
    pub uid: String,
    /// Where its network comes from.
    pub source: NetworkSource,
    /// Its annotations: bandwidth limits are read from them.
    pub annotations: BTreeMap<String, String>,
    /// Path of its cgroup.
    pub cgroup: String,
}

/// Where a pod's network comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkSource {
    /// CNI plugins make it, in a namespace that is made for it.
    Cni {
        /// Ports of the host that lead to the pod.
        port_mappings: Vec<PortMapping>,
    },
    /// It is there, in this namespace, which its maker takes down after the pod.
    Namespace {
        /// Where the namespace is mounted.
        path: PathBuf,
    },
}

impl Default for NetworkSource {
    fn default() -> Self {
        Self::Cni { port_mappings: Vec::new() }
    }
}

/// A port of the host that leads to the pod, as the CNI capability `portMappings` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address on the host, empty for all.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty", default)]
    pub host_ip: String,
}

/// A pod's network, set up.
#[derive(Debug)]
pub struct PodNetwork {
    /// The namespace.
    pub netns: PathBuf,
    /// The pod's addresses, IPv4 first, at least one.
    pub addresses: Vec<IpAddr>,
    /// What the guest's card shall have.
    pub interface: Interface,
    /// The tap that the VM's network card shall use.
    pub tap: OwnedFd,
}

/// What is kept of a pod's network until its teardown. The fields tell which it is: records of an earlier
/// daemon, which knew the first only, have no word for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Attachment {
    Made(Made),
    Joined(Joined),
}

/// A network that CNI plugins made.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Made {
    invocation: Invocation,
    conflist: Value,
    /// Absent while plugins have not all succeeded.
    result: Option<Value>,
}

/// Sets pods' networks up and tears them down.
#[derive(Debug, Clone)]
pub struct Networks {
    config: Arc<NetworkConfig>,
    plugins: Plugins,
    attachments: Collection<Attachment>,
}

impl Networks {
    /// # Errors
    /// Where the directory of records cannot be made.
    pub fn new(config: NetworkConfig) -> Result<Self, NetworkError> {
        let attachments = Collection::open(&config.state_dir, Durability::Process)?;
        let plugins = Plugins { directories: config.bin_dirs.clone(), timeout: config.plugin_timeout };
        Ok(Self { config: Arc::new(config), plugins, attachments })
    }

    /// Whether a pod could get a network now: a configuration is there, and every plugin it names.
    ///
    /// # Errors
    /// What is missing and where to put it.
    pub fn ready(&self) -> Result<(), NetworkError> {
        self.plugins.present(&Conflist::find(&self.config.conf_dir, None)?).map_err(Into::into)
    }

    /// Sets up a pod's network; each step pushes its release.
    ///
    /// # Errors
    /// What was taken is on `undo`.
    pub async fn add(&self, pod: &Pod, undo: &mut Undo) -> Result<PodNetwork, NetworkError> {
        match &pod.source {
            NetworkSource::Cni { port_mappings } => self.make(pod, port_mappings, undo).await,
            NetworkSource::Namespace { path } => self.join(pod, path, undo).await,
        }
    }

    async fn make(
        &self,
        pod: &Pod,
        port_mappings: &[PortMapping],
        undo: &mut Undo,
    ) -> Result<PodNetwork, NetworkError> {
        let list = self.conflist_for(&pod.namespace)?;
        self.plugins.present(&list)?;
        let netns = self.config.netns_dir.join(format!("isopod-{}", pod.sandbox_id));
        let invocation = invocation(pod, port_mappings, &netns);
        let mut made = Made { invocation, conflist: list.document.clone(), result: None };

        // On disk before anything exists: from here on `remove` finds all there is to release.
        self.attach(pod, Attachment::Made(made.clone()), undo)?;

        netns::create(&netns).instrument(info_span!("namespace")).await?;
        let added = self.plugins.add(&list, &made.invocation);
        let result = added.instrument(info_span!("plugins")).await?;
        let addresses = cni::addresses(&result);
        if addresses.is_empty() {
            return Err(NetworkError::NoAddress(list.name));
        }
        made.result = Some(result);
        self.attachments.put(&pod.sandbox_id, &Attachment::Made(made))?;
        undo.push("CNI result", || async { Ok::<_, NetworkError>(()) })?;

        let (interface, tap) = netns::within(&netns, link::join).instrument(info_span!("link")).await??;
        undo.push("tap", || async { Ok::<_, NetworkError>(()) })?;
        Ok(PodNetwork { netns, addresses, interface, tap })
    }

    /// Joins a namespace that somebody else made, and that has its interface and addresses.
    async fn join(&self, pod: &Pod, path: &Path, undo: &mut Undo) -> Result<PodNetwork, NetworkError> {
        let joined = Joined::check(path).await?;
        // From here on what is in the namespace under our names is ours.
        self.attach(pod, Attachment::Joined(joined), undo)?;
        let linked = netns::within(path, link::join).instrument(info_span!("link"));
        let (interface, tap) = linked.await??;
        undo.push("tap", || async { Ok::<_, NetworkError>(()) })?;
        let addresses = joined::addresses(&interface);
        if addresses.is_empty() {
            return Err(NetworkError::EmptyNamespace(path.to_owned()));
        }
        Ok(PodNetwork { netns: path.to_owned(), addresses, interface, tap })
    }

    /// Records what `remove` takes down, and has it called where the pod's start fails.
    fn attach(&self, pod: &Pod, attachment: Attachment, undo: &mut Undo) -> Result<(), NetworkError> {
        self.attachments.put(&pod.sandbox_id, &attachment)?;
        let (networks, id) = (self.clone(), pod.sandbox_id.clone());
        Ok(undo.push("network", move || async move { networks.remove(&id).await })?)
    }

    /// Asks the plugins whether a pod's network is still as they made it.
    ///
    /// # Errors
    /// What a plugin found; nothing to check is no error.
    pub async fn check(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        match self.attachments.get(sandbox_id)? {
            Some(Attachment::Made(Made { invocation, conflist, result: Some(result) })) => {
                Ok(self.plugins.check(&recorded(conflist)?, &invocation, &result).await?)
            }
            _ => Ok(()),
        }
    }

    /// Tears a pod's network down. One that is gone, or never was, is no error.
    ///
    /// # Errors
    /// What stayed; calling again tries again.
    pub async fn remove(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        match self.attachments.get(sandbox_id)? {
            None => return Ok(()),
            Some(Attachment::Made(made)) => self.unmake(made).await?,
            Some(Attachment::Joined(joined)) => joined.leave().await?,
        }
        Ok(self.attachments.remove(sandbox_id)?)
    }

    async fn unmake(&self, made: Made) -> Result<(), NetworkError> {
        let Made { mut invocation, conflist, result } = made;
        let netns = invocation.netns.clone();
        if !netns::is_there(&netns) {
            // The specification: plugins release what they can without the namespace.
            invocation.netns = PathBuf::new();
        }
        self.plugins.del(&recorded(conflist)?, &invocation, result.as_ref()).await?;
        Ok(netns::remove(&netns)?)
    }

    /// Ids of all sandboxes that have a network, or had one when the daemon was killed.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn known(&self) -> Result<Vec<String>, NetworkError> {
        Ok(self.attachments.load()?.documents.into_iter().map(|(id, _)| id).collect())
    }

    fn conflist_for(&self, namespace: &str) -> Result<Conflist, ConflistError> {
        let name = self.config.networks.get(namespace).map(String::as_str);
        Conflist::find(&self.config.conf_dir, name)
    }
}

/// A configuration as it was when the pod started. It was valid then.
fn recorded(document: Value) -> Result<Conflist, ConflistError> {
    let path = PathBuf::from("recorded with the pod");
    Conflist::parse(document).map_err(|reason| ConflistError::Invalid { path, reason })
}

fn invocation(pod: &Pod, port_mappings: &[PortMapping], netns: &Path) -> Invocation {
    // Values go into a ;-separated list: Kubernetes names hold none, but the CRI does not promise it.
    let plain = |text: &str| text.replace([';', '='], "_");
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        plain(&pod.namespace),
        plain(&pod.name),
        pod.sandbox_id,
        plain(&pod.uid)
    );
    let capabilities = capabilities(pod, port_mappings);
    Invocation { sandbox_id: pod.sandbox_id.clone(), netns: netns.to_owned(), args, capabilities }
}

fn capabilities(pod: &Pod, port_mappings: &[PortMapping]) -> Map<String, Value> {
    let mut capabilities = Map::new();
    if !port_mappings.is_empty() {
        capabilities.insert("portMappings".into(), json!(port_mappings));
    }
    let limit = |key: &str| pod.annotations.get(key).and_then(|text| bits_per_second(text));
    let mut bandwidth = Map::new();
    for (direction, key) in
        [("ingress", "kubernetes.io/ingress-bandwidth"), ("egress", "kubernetes.io/egress-bandwidth")]
    {
        if let Some(rate) = limit(key) {
            bandwidth.insert(format!("{direction}Rate"), json!(rate));
            // As much as the rate gives in a second, within the plugin's 32-bit limit.
            bandwidth.insert(format!("{direction}Burst"), json!(rate.min(u64::from(u32::MAX))));
        }
    }
    if !bandwidth.is_empty() {
        capabilities.insert("bandwidth".into(), Value::Object(bandwidth));
    }
    if !pod.cgroup.is_empty() {
        capabilities.insert("cgroupPath".into(), json!(pod.cgroup));
    }
    capabilities.insert("io.kubernetes.cri.pod-annotations".into(), json!(pod.annotations));
    capabilities
}

/// A Kubernetes quantity of bits per second: digits and one of k, M, G, T, P, Ki, Mi, Gi, Ti, Pi, or none.
fn bits_per_second(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (base, power) = match unit {
        "" => (1, 0),
        "k" => (1000, 1),
        "M" => (1000, 2),
        "G" => (1000, 3),
        "T" => (1000, 4),
        "P" => (1000, 5),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(u64::checked_pow(base, power)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn pod() -> Pod {
        let annotations = BTreeMap::from([("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())]);
        Pod {
            sandbox_id: "s1".into(),
            name: "web;CNI_PATH=/evil".into(),
            namespace: "default".into(),
            annotations,
            ..Pod::default()
        }
    }

    fn networks(directory: &Path) -> Networks {
        let networks = Networks::new(NetworkConfig {
            conf_dir: directory.join("conf"),
            bin_dirs: vec![],
            state_dir: directory.join("state"),
            netns_dir: directory.join("netns"),
            networks: BTreeMap::new(),
            plugin_timeout: Duration::from_secs(1),
        });
        networks.unwrap()
    }

    #[test]
    fn hostile_pod_name_cannot_add_arguments() {
        let args = invocation(&pod(), &[], Path::new("/n")).args;
        assert!(args.contains("K8S_POD_NAME=web_CNI_PATH_/evil;"), "{args}");
    }

    #[test]
    fn ports_and_bandwidth_become_capabilities() {
        let port = PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol: "tcp".into(),
            host_ip: String::new(),
        };
        let capabilities = capabilities(&pod(), &[port]);
        let port = json!([{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]);
        assert_eq!(capabilities["portMappings"], port);
        assert_eq!(capabilities["bandwidth"]["ingressRate"], 10_000_000);
    }

    #[test]
    fn quantities_follow_kubernetes() {
        assert_eq!(bits_per_second("5"), Some(5));
        assert_eq!(bits_per_second("2Ki"), Some(2048));
        assert_eq!(bits_per_second("99999999999P"), None);
        assert_eq!(bits_per_second("10 MB"), None);
    }

    #[tokio::test]
    async fn removing_an_unknown_network_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let networks = networks(directory.path());
        networks.remove("never-was").await.unwrap();
        assert!(networks.ready().unwrap_err().to_string().contains("put a .conflist file there"));
    }

    #[test]
    fn record_of_a_daemon_that_knew_cni_only_is_one_of_a_made_network() {
        let invocation = json!({"sandbox_id": "s1", "netns": "/n", "args": "", "capabilities": {}});
        let former = json!({"invocation": invocation, "conflist": {}, "result": null});
        let read: Attachment = serde_json::from_value(former).unwrap();
        assert!(matches!(read, Attachment::Made(made) if made.invocation.netns == Path::new("/n")));
        let joined = Attachment::Joined(Joined { joined_namespace: "/n".into() });
        let written = serde_json::to_value(&joined).unwrap();
        assert!(matches!(serde_json::from_value(written).unwrap(), Attachment::Joined(_)));
    }

    #[tokio::test]
    async fn namespace_that_is_gone_is_left_without_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let networks = networks(directory.path());
        let joined = Joined { joined_namespace: directory.path().join("gone") };
        networks.attachments.put("s1", &Attachment::Joined(joined)).unwrap();
        assert_eq!(networks.known().unwrap(), ["s1"]);
        networks.remove("s1").await.unwrap();
        assert!(networks.known().unwrap().is_empty());
    }

    /// A namespace that others made is never theirs to lose: nothing is recorded, so nothing is removed.
    #[tokio::test]
    async fn namespace_that_cannot_be_joined_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (networks, file) = (networks(directory.path()), directory.path().join("file"));
        fs::write(&file, "").unwrap();
        for path in [&file, &directory.path().join("missing")] {
            let mut undo = Undo::new("network");
            let pod = Pod { source: NetworkSource::Namespace { path: path.clone() }, ..pod() };
            let error = networks.add(&pod, &mut undo).await.unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            undo.run().await.unwrap();
            assert!(networks.known().unwrap().is_empty());
        }
        assert!(file.exists());
    }
}
