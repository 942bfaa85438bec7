//! The sections of the configuration file, with their defaults. Each key's meaning is also told in
//! `isopod.example.toml`, which a test compares with these defaults.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The daemon itself.
    pub daemon: DaemonConfig,
    /// The virtual machines of pods.
    pub vm: VmConfig,
    /// Pod networks.
    pub cni: CniConfig,
    /// Images.
    pub image: ImageConfig,
    /// Registries, by host.
    pub registry: BTreeMap<String, RegistryConfig>,
    /// Runtime handlers beside the default one: what they have instead of `[vm]`.
    pub handlers: BTreeMap<String, HandlerConfig>,
}

/// Form of the daemon's log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Which pods may be clones of the same template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateScope {
    /// All of the node.
    #[default]
    Node,
    /// Those of one Kubernetes namespace.
    Namespace,
    /// None: every pod boots its guest.
    Off,
}

/// Begin of the name of a namespace's scope.
pub const NAMESPACE_SCOPE: &str = "ns:";

impl TemplateScope {
    /// Name of the scope that a pod of `namespace` belongs to: empty for the whole node. `None` where it shares nothing, or
    /// with somebody in its namespace, and that is not given.
    pub fn scope(self, namespace: Option<&str>) -> Option<String> {
        match self {
            Self::Node => Some(String::new()),
            Self::Namespace => namespace.map(|namespace| format!("{NAMESPACE_SCOPE}{namespace}")),
            Self::Off => None,
        }
    }
}

/// Section `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonConfig {
    /// Unix socket that serves the CRI.
    pub socket: PathBuf,
    /// Records and sockets of what runs; lives as long as the machine runs.
    pub state_dir: PathBuf,
    /// Images, and the scratch disks of pods.
    pub root_dir: PathBuf,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// What is logged, as `tracing` filters have it: `info`, or `info,isopod_runtime::network=debug`.
    pub log_filter: String,
    /// Threads that serve calls.
    pub worker_threads: usize,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            socket: "/run/isopod/isopod.sock".into(),
            state_dir: "/run/isopod".into(),
            root_dir: "/var/lib/isopod".into(),
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            worker_threads: 2,
        }
    }
}

/// Directories that programs share: locking others out of one of them would stop the machine.
const SHARED: &str = "/ /boot /dev /dev/shm /etc /home /media /mnt /opt /proc /root /run /run/lock /run/user \
    /srv /sys /tmp /usr /usr/lib /usr/local /var /var/cache /var/lib /var/log /var/run /var/tmp";

impl DaemonConfig {
    /// The key and the reason where a value cannot work.
    pub(super) fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let is_shared = |path: &Path| {
            SHARED.split_whitespace().any(|shared| path.components().eq(Path::new(shared).components()))
        };
        for (key, path) in [("state_dir", &self.state_dir), ("root_dir", &self.root_dir)] {
            if !path.is_absolute() || is_shared(path) {
                let reason =
                    "must be an absolute path of a directory of isopod's own: others are locked out of it";
                return Err((key, reason));
            }
        }
        Ok(())
    }
}

/// Section `[vm]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// Guest kernel, an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// Guest root, an EROFS image with the agent.
    pub root_image: PathBuf,
    /// The VMM's program.
    pub vmm: PathBuf,
    /// Virtual CPUs of a pod that names no limit.
    pub vcpus: u8,
    /// Most virtual CPUs that a VM may be given while it runs, when its pod's limits grow; it begins with what they are. Never
    /// more than the node has. Each one beyond those in use costs the guest some memory.
    pub max_vcpus: u8,
    /// Guest memory, in MiB, of a pod that names no limit; with one it is added to the limit for the guest's own needs
    /// where the pod has no overhead.
    pub memory_mib: u32,
    /// Seconds a guest may take until its agent answers.
    pub boot_timeout_s: u32,
    /// Ask the host for 2 MiB pages also where an idle guest lives: faster to boot, and takes more memory.
    pub huge_pages: bool,
    /// Show guests the processor's virtualization, so that pods can run VMs of their own, where the host's KVM lets them. Off,
    /// they cannot reach the part of the host's KVM that such VMs need.
    pub nested_virtualization: bool,
    /// Words added to the guest kernel's command line.
    pub kernel_args: Vec<String>,
    /// Size of a pod's scratch disk in MiB, which holds what its containers write; sparse on the host.
    pub scratch_mib: u32,
    /// Which pods may be clones of the same template, instead of booting.
    pub template: TemplateScope,
    /// First host user and group id of VMMs: each runs as its own.
    pub first_uid: u32,
    /// How many of them there are. The last one is for what makes and keeps templates; as many pods as there are others can
    /// run at once.
    pub uid_count: u32,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            kernel: "/usr/lib/isopod/vmlinux".into(),
            root_image: "/usr/lib/isopod/guest-root.erofs".into(),
            vmm: "/usr/lib/isopod/isopod-vmm".into(),
            vcpus: 1,
            max_vcpus: 2,
            memory_mib: 256,
            boot_timeout_s: 30,
            huge_pages: false,
            nested_virtualization: false,
            kernel_args: Vec::new(),
            scratch_mib: 10240,
            template: TemplateScope::Node,
            first_uid: 2_000_000_000,
            uid_count: 65536,
        }
    }
}

impl VmConfig {
    /// The key and the reason where a value cannot work.
    pub(super) fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        if !(1..=64).contains(&self.vcpus) {
            return Err(("vcpus", "must be 1 to 64"));
        }
        if !(1..=64).contains(&self.max_vcpus) {
            return Err(("max_vcpus", "must be 1 to 64"));
        }
        if self.memory_mib < 64 {
            return Err(("memory_mib", "must be at least 64"));
        }
        if self.boot_timeout_s == 0 {
            return Err(("boot_timeout_s", "must be at least 1"));
        }
        if self.scratch_mib < 16 {
            return Err(("scratch_mib", "must be at least 16, the smallest ext4 that is of use"));
        }
        if self.first_uid == 0 || self.first_uid.checked_add(self.uid_count).is_none() {
            return Err(("first_uid", "and uid_count must be a range of ids above 0 that fits 32 bits"));
        }
        if self.uid_count < 2 {
            return Err(("uid_count", "must be at least 2: one is for templates, the others are for pods"));
        }
        Ok(())
    }

    /// Host user and group ids of pods' VMMs; `host_users` says which are taken.
    pub fn pod_uids(&self) -> Range<u32> {
        self.first_uid..self.template_uid()
    }

    /// Host user and group id of what makes and keeps templates: the last of the range.
    pub fn template_uid(&self) -> u32 {
        self.first_uid + self.uid_count - 1
    }
}

/// Section `[handlers.NAME]`: a runtime handler (the `handler` of a Kubernetes RuntimeClass) and what its VMs have
/// instead of `[vm]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlerConfig {
    /// See [`VmConfig::kernel`].
    pub kernel: Option<PathBuf>,
    /// See [`VmConfig::root_image`].
    pub root_image: Option<PathBuf>,
    /// See [`VmConfig::vmm`].
    pub vmm: Option<PathBuf>,
    /// See [`VmConfig::vcpus`].
    pub vcpus: Option<u8>,
    /// See [`VmConfig::max_vcpus`].
    pub max_vcpus: Option<u8>,
    /// See [`VmConfig::memory_mib`].
    pub memory_mib: Option<u32>,
    /// See [`VmConfig::boot_timeout_s`].
    pub boot_timeout_s: Option<u32>,
    /// See [`VmConfig::huge_pages`].
    pub huge_pages: Option<bool>,
    /// See [`VmConfig::nested_virtualization`].
    pub nested_virtualization: Option<bool>,
    /// See [`VmConfig::kernel_args`].
    pub kernel_args: Option<Vec<String>>,
    /// See [`VmConfig::scratch_mib`].
    pub scratch_mib: Option<u32>,
    /// See [`VmConfig::template`].
    pub template: Option<TemplateScope>,
}

impl HandlerConfig {
    /// `base` with what this handler names in its place. The range of user ids is the node's, never a handler's.
    pub(super) fn apply(&self, base: &VmConfig) -> VmConfig {
        let base = base.clone();
        VmConfig {
            kernel: self.kernel.clone().unwrap_or(base.kernel),
            root_image: self.root_image.clone().unwrap_or(base.root_image),
            vmm: self.vmm.clone().unwrap_or(base.vmm),
            vcpus: self.vcpus.unwrap_or(base.vcpus),
            max_vcpus: self.max_vcpus.unwrap_or(base.max_vcpus),
            memory_mib: self.memory_mib.unwrap_or(base.memory_mib),
            boot_timeout_s: self.boot_timeout_s.unwrap_or(base.boot_timeout_s),
            huge_pages: self.huge_pages.unwrap_or(base.huge_pages),
            nested_virtualization: self.nested_virtualization.unwrap_or(base.nested_virtualization),
            kernel_args: self.kernel_args.clone().unwrap_or(base.kernel_args),
            scratch_mib: self.scratch_mib.unwrap_or(base.scratch_mib),
            template: self.template.unwrap_or(base.template),
            first_uid: base.first_uid,
            uid_count: base.uid_count,
        }
    }
}

/// Section `[cni]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CniConfig {
    /// Directory of `.conflist` files; the first by name is the network of pods.
    pub conf_dir: PathBuf,
    /// Directories of plugins, in order of preference.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory of network namespaces.
    pub netns_dir: PathBuf,
    /// Seconds one call of a plugin may take.
    pub plugin_timeout_s: u32,
    /// Kubernetes namespaces whose pods have another network: namespace to name of the network.
    pub networks: BTreeMap<String, String>,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            netns_dir: "/run/netns".into(),
            plugin_timeout_s: 60,
            networks: BTreeMap::new(),
        }
    }
}

/// Section `[image]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// Host user and group id of the process that makes an EROFS file of a layer.
    pub jail_uid: u32,
    /// Layers that are fetched and converted at the same time on this node.
    pub parallel_layers: usize,
    /// Seconds to wait for a registry that sends nothing.
    pub stall_timeout_s: u32,
    /// Fewest KiB a second that a registry must send of a layer, over ten times `stall_timeout_s`; 0 accepts any.
    pub min_rate_kib_s: u32,
    /// Largest uncompressed layer in MiB.
    pub max_layer_mib: u64,
    /// Largest image in MiB: its layers together, uncompressed.
    pub max_image_mib: u64,
    /// MiB of the images' file system that pulls leave free, but never more than a tenth of it.
    pub disk_reserve_mib: u64,
    /// MiB of memory that all converters of layers together may take; 0 for no bound but that of each.
    pub converter_memory_mib: u64,
    /// cgroup below which the converters' is, as kubelet names the parents of pods: a path or a slice. Empty is the top.
    pub converter_cgroup_parent: String,
    /// Fetch layers that no registry has from the addresses in the image's manifest, which whoever made the image chose.
    pub foreign_layers: bool,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            jail_uid: 1_999_999_999,
            parallel_layers: 3,
            stall_timeout_s: 30,
            min_rate_kib_s: 4,
            max_layer_mib: 32768,
            max_image_mib: 65536,
            disk_reserve_mib: 1024,
            converter_memory_mib: 2048,
            converter_cgroup_parent: String::new(),
            foreign_layers: false,
        }
    }
}

impl ImageConfig {
    /// The key and the reason where a value cannot work.
    pub(super) fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        if self.jail_uid == 0 {
            return Err(("jail_uid", "must not be 0: the process parses untrusted archives"));
        }
        if !(1..=64).contains(&self.parallel_layers) {
            return Err(("parallel_layers", "must be 1 to 64"));
        }
        if self.stall_timeout_s == 0 {
            return Err(("stall_timeout_s", "must be at least 1"));
        }
        if self.min_rate_kib_s > 1 << 20 {
            return Err(("min_rate_kib_s", "must be 0 to 1048576, which is 1 GiB a second"));
        }
        if !(1..=4 << 20).contains(&self.max_layer_mib) {
            return Err(("max_layer_mib", "must be 1 to 4194304, which is 4 TiB"));
        }
        if !(1..=64 << 20).contains(&self.max_image_mib) {
            return Err(("max_image_mib", "must be 1 to 67108864, which is 64 TiB"));
        }
        if self.disk_reserve_mib > 64 << 20 {
            return Err(("disk_reserve_mib", "must be 0 to 67108864, which is 64 TiB"));
        }
        if self.converter_memory_mib != 0 && !(64..=4 << 20).contains(&self.converter_memory_mib) {
            return Err(("converter_memory_mib", "must be 0, or 64 to 4194304, which is 4 TiB"));
        }
        Ok(())
    }
}

/// Section `[registry."HOST"]`: how a registry is reached; `"*"` is for all hosts that have no section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Addresses that are asked first, in order, such as `http://127.0.0.1:5000`; a path goes before the repository.
    pub mirrors: Vec<String>,
    /// Ask the mirrors only, never the registry itself.
    pub mirrors_only: bool,
    /// Reach this host without TLS. This machine's own addresses always are.
    pub plain_http: bool,
    /// Take any certificate of this host.
    pub skip_verify: bool,
    /// Certificates, in PEM form, that may vouch for this host beside the system's.
    pub ca_file: Option<PathBuf>,
}
