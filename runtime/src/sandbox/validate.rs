//! What a pod asks for and whether it can have it: RunPodSandbox's request in, a [`Plan`] out, or one sentence that says
//! why not and what to do.
//!
//! Nothing is taken here, so nothing is to be undone. Nothing is dropped silently either: a wish that a VM cannot fulfil
//! is refused.

use crate::config::{Config, VmConfig};
use crate::cpu_list::CpuList;
use crate::hypervisor::useful_vcpus;
use crate::network::PortMapping;
use k8s_cri::v1::{
    DnsConfig, LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PortMapping as CriPort, Protocol,
};
use std::net::IpAddr;

/// Longest host name that Linux takes (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;

/// Memory in MiB that a VMM needs for itself, taken from a pod's overhead: guest memory and VMM together must fit the
/// limit that kubelet puts on the pod's cgroup.
const VMM_MIB: u64 = 16;

/// Least guest memory in MiB.
const MIN_MEMORY_MIB: u64 = 64;

/// Why a pod is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// A field that everything needs is empty.
    #[error(
        "{0} is missing in the pod's configuration: kubelet sets it; with crictl, write it into the file"
    )]
    Missing(&'static str),
    /// No such handler.
    #[error(
        "runtime handler {name:?} is not configured on this node (there are {known}): use one of these in the \
         RuntimeClass, or add a section [handlers.{name}]"
    )]
    UnknownHandler {
        /// The name.
        name: String,
        /// All names that would do.
        known: String,
    },
    /// A namespace of the host.
    #[error(
        "host{0} cannot be given to a pod that is a virtual machine: it has a kernel of its own; set host{0} to false, or \
         run this pod with another RuntimeClass"
    )]
    HostNamespace(&'static str),
    /// A namespace mode that makes no sense for a pod.
    #[error("{0} namespace mode {1} is not possible for a pod sandbox: use POD")]
    NamespaceMode(&'static str, i32),
    /// A user namespace.
    #[error(
        "user namespaces (hostUsers: false) are not supported yet; the pod's users are those of its own guest already, and \
         never the host's: leave hostUsers unset"
    )]
    UserNamespace,
    /// SELinux labels.
    #[error(
        "seLinuxOptions cannot be applied: the guest kernel has no SELinux; remove them, the pod is confined by its VM"
    )]
    SeLinux,
    /// Configuration for another system.
    #[error("windows pod configuration on a Linux node: remove it")]
    Windows,
    /// A sysctl that is none.
    #[error(
        "sysctl {0:?} is not a sysctl: use letters, digits, '_', '-', '.' and '/', and a value on one line"
    )]
    Sysctl(String),
    /// A host name that Linux does not take.
    #[error("hostname {0:?} is not a host name of at most 64 letters, digits, '-' and '.'")]
    Hostname(String),
    /// DNS settings that would not be one line each of resolv.conf.
    #[error("dns {0} {1:?} cannot be written to resolv.conf: servers are addresses, the others single words")]
    Dns(&'static str, String),
    /// A port that is none.
    #[error(
        "port mapping {0} is not possible: ports are 1 to 65535, protocols TCP, UDP and SCTP, hostIP an address"
    )]
    Port(String),
    /// The directory for logs.
    #[error("log directory {0:?} is not an absolute path")]
    LogDirectory(String),
    /// More than a VM can have.
    #[error("the pod asks for {0}: more than this node's VMs can have ({1})")]
    TooLarge(String, String),
}

/// Size of a pod's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB, a multiple of 2 where limits say it.
    pub memory_mib: u32,
}

/// A pod that can be made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// As kubelet asked.
    pub config: PodSandboxConfig,
    /// As kubelet asked.
    pub handler: String,
    /// Settings of the handler's VMs.
    pub vm: VmConfig,
    /// Size of this pod's VM.
    pub size: Size,
    /// Host ports that lead to the pod.
    pub ports: Vec<PortMapping>,
}

impl Plan {
    /// Checks everything that can be known before anything is taken.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn new(node: &Config, config: PodSandboxConfig, handler: &str) -> Result<Self, Refusal> {
        metadata(&config)?;
        if config.windows.is_some() {
            return Err(Refusal::Windows);
        }
        let vm = node.vm_of(handler).ok_or_else(|| unknown_handler(node, handler))?;
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        namespaces(&security.namespace_options.unwrap_or_default())?;
        if security.selinux_options.is_some_and(|options| options != Default::default()) {
            return Err(Refusal::SeLinux);
        }
        linux.sysctls.iter().try_for_each(|(name, value)| sysctl(name, value))?;
        hostname(&config.hostname)?;
        dns(&config.dns_config.clone().unwrap_or_default())?;
        if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
            return Err(Refusal::LogDirectory(config.log_directory));
        }
        let ports = ports(&config.port_mappings)?;
        let size = size(&vm, linux.resources.as_ref(), linux.overhead.as_ref())?;
        Ok(Self { config, handler: handler.to_owned(), vm, size, ports })
    }
}

fn metadata(config: &PodSandboxConfig) -> Result<(), Refusal> {
    let metadata = config.metadata.as_ref().ok_or(Refusal::Missing("metadata"))?;
    let parts = [
        ("metadata.name", &metadata.name),
        ("metadata.namespace", &metadata.namespace),
        ("metadata.uid", &metadata.uid),
    ];
    match parts.iter().find(|(_, text)| text.is_empty()) {
        Some((name, _)) => Err(Refusal::Missing(name)),
        None => Ok(()),
    }
}

fn unknown_handler(node: &Config, handler: &str) -> Refusal {
    let known: Vec<String> = node.handler_names().iter().map(|name| format!("{name:?}")).collect();
    Refusal::UnknownHandler { name: handler.to_owned(), known: known.join(", ") }
}

fn namespaces(options: &NamespaceOption) -> Result<(), Refusal> {
    let asked =
        [("Network", "network", options.network), ("PID", "pid", options.pid), ("IPC", "ipc", options.ipc)];
    for (kubernetes, name, mode) in asked {
        match NamespaceMode::try_from(mode) {
            Ok(NamespaceMode::Pod) => {}
            // Each container its own: for processes this is the usual mode.
            Ok(NamespaceMode::Container) if name == "pid" => {}
            Ok(NamespaceMode::Node) => return Err(Refusal::HostNamespace(kubernetes)),
            _ => return Err(Refusal::NamespaceMode(name, mode)),
        }
    }
    match &options.userns_options {
        Some(user) if user.mode != i32::from(NamespaceMode::Node) => Err(Refusal::UserNamespace),
        _ => Ok(()),
    }
}

fn sysctl(name: &str, value: &str) -> Result<(), Refusal> {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    let named = name.split(['.', '/']).count() > 1 && name.split(['.', '/']).all(part);
    if named && !value.contains(['\n', '\0']) { Ok(()) } else { Err(Refusal::Sysctl(name.to_owned())) }
}

fn hostname(name: &str) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.len() <= MAX_HOSTNAME && name.chars().all(plain) {
        Ok(())
    } else {
        Err(Refusal::Hostname(name.to_owned()))
    }
}

fn dns(config: &DnsConfig) -> Result<(), Refusal> {
    // A link-local server may name its interface: fe80::1%eth0.
    let address = |s: &String| s.split('%').next().is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
    let word = |s: &String| !s.is_empty() && !s.contains(|c: char| c.is_whitespace() || c.is_control());
    let bad = |what, list: &[String], good: &dyn Fn(&String) -> bool| {
        list.iter().find(|s| !(good(s) && word(s))).map(|s| Refusal::Dns(what, s.clone()))
    };
    let first = bad("server", &config.servers, &address)
        .or_else(|| bad("search domain", &config.searches, &word))
        .or_else(|| bad("option", &config.options, &word));
    first.map_or(Ok(()), Err)
}

/// Those mappings that have a host port; the others only document what the pod listens to.
fn ports(mappings: &[CriPort]) -> Result<Vec<PortMapping>, Refusal> {
    mappings.iter().filter(|mapping| mapping.host_port != 0).map(port).collect()
}

fn port(mapping: &CriPort) -> Result<PortMapping, Refusal> {
    let refuse = || {
        Refusal::Port(format!(
            "{}:{} -> {} ({:?})",
            mapping.host_ip, mapping.host_port, mapping.container_port, mapping.protocol
        ))
    };
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(refuse);
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
        return Err(refuse());
    }
    let protocol = match Protocol::try_from(mapping.protocol) {
        Ok(Protocol::Tcp) => "tcp",
        Ok(Protocol::Udp) => "udp",
        Ok(Protocol::Sctp) => "sctp",
        Err(_) => return Err(refuse()),
    };
    Ok(PortMapping {
        host_port: number(mapping.host_port)?,
        container_port: number(mapping.container_port)?,
        protocol: protocol.to_owned(),
        host_ip: mapping.host_ip.clone(),
    })
}

/// The VM's size: what the pod's containers may use in all, and what the guest needs beside them.
pub fn size(
    settings: &VmConfig,
    resources: Option<&LinuxContainerResources>,
    overhead: Option<&LinuxContainerResources>,
) -> Result<Size, Refusal> {
    let mut size = Size { vcpus: settings.vcpus, memory_mib: settings.memory_mib };
    let cpus = |r: Option<&LinuxContainerResources>| match r {
        // In thousandths of a CPU.
        Some(r) if r.cpu_quota > 0 && r.cpu_period > 0 => r.cpu_quota.saturating_mul(1000) / r.cpu_period,
        // CPUs of the node count where no quota says less.
        Some(r) => r.cpuset_cpus.parse().map_or(0, |set: CpuList| set.len() as i64 * 1000),
        _ => 0,
    };
    let limit = cpus(resources);
    if limit > 0 {
        let wanted =
            u64::try_from(limit.saturating_add(cpus(overhead)).max(1)).unwrap_or(u64::MAX).div_ceil(1000);
        size.vcpus = u8::try_from(wanted).unwrap_or(u8::MAX).min(useful_vcpus());
    }
    let bytes = |r: Option<&LinuxContainerResources>| {
        r.and_then(|r| u64::try_from(r.memory_limit_in_bytes).ok()).filter(|bytes| *bytes > 0)
    };
    if let Some(limit) = bytes(resources) {
        let own = match bytes(overhead) {
            Some(overhead) => overhead.div_ceil(1 << 20).saturating_sub(VMM_MIB),
            None => u64::from(settings.memory_mib),
        };
        // What is added to a VM comes in pieces of 2 MiB.
        let wanted = (limit.div_ceil(1 << 20) + own).max(MIN_MEMORY_MIB).next_multiple_of(2);
        size.memory_mib = u32::try_from(wanted)
            .map_err(|_| Refusal::TooLarge(format!("{wanted} MiB of memory"), format!("{} MiB", u32::MAX)))?;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_cri::v1::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, PodSandboxMetadata, SeLinuxOption, UserNamespace,
        WindowsPodSandboxConfig,
    };

    fn pod() -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 };
        PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    fn refusal(change: impl FnOnce(&mut PodSandboxConfig)) -> Refusal {
        let mut config = pod();
        change(&mut config);
        Plan::new(&Config::default(), config, "").unwrap_err()
    }

    fn linux(config: &mut PodSandboxConfig) -> &mut LinuxPodSandboxConfig {
        config.linux.get_or_insert_default()
    }

    fn security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
        linux(config).security_context.get_or_insert_default()
    }

    fn options(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
        security(config).namespace_options.get_or_insert_default()
    }

    #[test]
    fn plain_pod_gets_the_defaults() {
        let plan = Plan::new(&Config::default(), pod(), "isopod").unwrap();
        assert_eq!(plan.vm, Config::default().vm);
    }

    /// Other runtimes let a pod's author choose programs, their arguments and the guest's kernel by
    /// annotations.
    #[test]
    fn annotations_and_labels_change_nothing_of_the_vm() {
        let hostile = [
            "io.katacontainers.config.hypervisor.path",
            "io.katacontainers.config.hypervisor.kernel_params",
            "io.katacontainers.config.hypervisor.virtio_fs_extra_args",
            "io.katacontainers.config_path",
            "io.kubernetes.cri-o.Devices",
            "cdi.k8s.io/any",
        ];
        let mut config = pod();
        config.annotations = hostile.map(|key| (key.to_owned(), "/bin/sh".to_owned())).into();
        config.labels = config.annotations.clone();
        let (plain, annotated) = (pod(), config);
        let [plain, annotated] =
            [plain, annotated].map(|config| Plan::new(&Config::default(), config, "").unwrap());
        assert_eq!((annotated.vm, annotated.size), (plain.vm, plain.size));
        assert_eq!(annotated.handler, plain.handler);
        assert!(annotated.ports.is_empty());
    }

    #[test]
    fn missing_metadata_is_named() {
        assert_eq!(refusal(|c| c.metadata = None), Refusal::Missing("metadata"));
        let no_uid = |c: &mut PodSandboxConfig| c.metadata.as_mut().unwrap().uid.clear();
        assert_eq!(refusal(no_uid), Refusal::Missing("metadata.uid"));
    }

    #[test]
    fn host_namespaces_are_refused_by_their_kubernetes_names() {
        let node = i32::from(NamespaceMode::Node);
        assert_eq!(refusal(|c| options(c).network = node), Refusal::HostNamespace("Network"));
        assert_eq!(refusal(|c| options(c).pid = node), Refusal::HostNamespace("PID"));
        let refused = refusal(|c| options(c).ipc = node);
        assert!(refused.to_string().starts_with("hostIPC cannot be given"), "{refused}");
        let container = i32::from(NamespaceMode::Container);
        assert_eq!(refusal(|c| options(c).network = container), Refusal::NamespaceMode("network", container));
    }

    #[test]
    fn user_namespaces_selinux_and_windows_are_refused() {
        let users = Some(UserNamespace::default());
        assert_eq!(refusal(|c| options(c).userns_options = users), Refusal::UserNamespace);
        let label = SeLinuxOption { level: "s0:c1".into(), ..Default::default() };
        assert_eq!(refusal(|c| security(c).selinux_options = Some(label)), Refusal::SeLinux);
        let windows = Some(WindowsPodSandboxConfig::default());
        assert_eq!(refusal(|c| c.windows = windows), Refusal::Windows);
    }

    #[test]
    fn unknown_handler_lists_those_there_are() {
        let refused = Plan::new(&Config::default(), pod(), "runc").unwrap_err().to_string();
        assert!(refused.contains("\"runc\"") && refused.contains("\"\", \"isopod\""), "{refused}");
    }

    #[test]
    fn sysctls_that_would_leave_proc_sys_are_refused() {
        for name in ["net.ipv4.ip_forward", "kernel/shm_rmid_forced", "net.ipv4.conf.eth0-1.rp_filter"] {
            sysctl(name, "1").unwrap();
        }
        for (name, value) in [("net", "1"), ("../../etc", "1"), ("net..x", "1"), ("a.b", "1\n2"), ("", "")] {
            assert!(sysctl(name, value).is_err(), "{name}");
        }
    }

    #[test]
    fn dns_settings_cannot_add_lines() {
        let with = |servers: &[&str], searches: &[&str], opts: &[&str]| {
            let list = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
            dns(&DnsConfig { servers: list(servers), searches: list(searches), options: list(opts) })
        };
        with(&["10.0.0.10", "fe80::1%eth0"], &["svc.cluster.local"], &["ndots:5"]).unwrap();
        assert!(with(&["dns.example"], &[], &[]).is_err());
        assert!(with(&["10.0.0.10%\nsearch x"], &[], &[]).is_err());
        assert!(with(&[], &["a\nnameserver 6.6.6.6"], &[]).is_err());
        assert!(with(&[], &[], &["a b"]).is_err());
    }

    #[test]
    fn ports_without_a_host_port_are_left_out_and_bad_ones_refused() {
        let port = |host_port, container_port| CriPort { host_port, container_port, ..Default::default() };
        assert_eq!(ports(&[port(0, 80)]).unwrap().len(), 0);
        assert_eq!(ports(&[port(8080, 80)]).unwrap()[0].container_port, 80);
        assert!(ports(&[port(70000, 80)]).is_err());
        assert!(ports(&[port(80, 0)]).is_err());
        assert!(ports(&[CriPort { host_ip: "x".into(), ..port(80, 80) }]).is_err());
    }

    #[test]
    fn size_follows_limits_and_overhead() {
        let base = VmConfig { vcpus: 1, memory_mib: 256, ..VmConfig::default() };
        let resources = |cpu_quota, mib: i64| LinuxContainerResources {
            cpu_quota,
            cpu_period: 100_000,
            memory_limit_in_bytes: mib << 20,
            ..Default::default()
        };
        let sized = |resources: Option<_>, overhead: Option<_>| {
            let size = size(&base, resources.as_ref(), overhead.as_ref()).unwrap();
            (size.vcpus, size.memory_mib)
        };
        assert_eq!(sized(None, None), (1, 256));
        assert_eq!(sized(Some(resources(0, 0)), Some(resources(0, 100))), (1, 256), "no limit: the default");
        assert_eq!(sized(Some(resources(0, 512)), None).1, 768);
        assert_eq!(sized(Some(resources(0, 512)), Some(resources(0, 116))).1, 612);
        assert_eq!(sized(Some(resources(10_000, 1)), Some(resources(0, 1))), (1, 64));
        let two = if std::thread::available_parallelism().unwrap().get() > 1 { 2 } else { 1 };
        assert_eq!(sized(Some(resources(100_000, 0)), Some(resources(10_000, 0))).0, two);
        assert!(size(&base, Some(&resources(0, 1 << 40)), None).is_err());
    }

    #[test]
    fn limits_beyond_all_numbers_are_refused_and_no_defect() {
        let most = LinuxContainerResources {
            cpu_quota: i64::MAX,
            cpu_period: 1,
            memory_limit_in_bytes: i64::MAX,
            ..Default::default()
        };
        assert!(size(&VmConfig::default(), Some(&most), Some(&most)).is_err());
    }

    #[test]
    fn long_hostname_and_relative_log_directory_are_refused() {
        assert!(matches!(refusal(|c| c.hostname = "x".repeat(65)), Refusal::Hostname(_)));
        assert!(matches!(refusal(|c| c.log_directory = "logs".into()), Refusal::LogDirectory(_)));
    }
}
