//! From RunPodSandbox's message to the specification of a sandbox.
//!
//! Called by `run_pod_sandbox`. What a VM cannot give is refused here, where the CRI's words for it are
//! known, and nothing is dropped silently; what any client may get wrong, `sandbox` refuses.

use super::resources;
use crate::network::{NetworkSource, PortMapping};
use crate::sandbox::{AskedNamespaces, Dns, PodName, SandboxSpec};
use isopod_protocols::cri::{
    DnsConfig, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping as CriPort,
    Protocol, UserNamespace,
};
use std::net::IpAddr;
use std::path::PathBuf;

/// A `PodSandboxConfig` that cannot be granted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PodConfigError {
    /// A field that everything needs is empty.
    #[error(
        "{0} is missing in the pod's configuration: kubelet sets it; with crictl, write it into the file"
    )]
    Missing(&'static str),
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
    /// A port that is none.
    #[error(
        "port mapping {0} is not possible: ports are 1 to 65535, protocols TCP, UDP and SCTP, hostIP an address"
    )]
    Port(String),
}

/// The specification of a sandbox whose network CNI makes.
///
/// # Errors
/// See [`PodConfigError`].
pub fn sandbox_spec(config: PodSandboxConfig, handler: &str) -> Result<SandboxSpec, PodConfigError> {
    let name = pod_name(config.metadata)?;
    if config.windows.is_some() {
        return Err(PodConfigError::Windows);
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = namespaces(&security.namespace_options.unwrap_or_default())?;
    if security.selinux_options.is_some_and(|options| options != Default::default()) {
        return Err(PodConfigError::SeLinux);
    }
    let DnsConfig { servers, searches, options } = config.dns_config.unwrap_or_default();
    Ok(SandboxSpec {
        id: None,
        name,
        handler: handler.to_owned(),
        hostname: config.hostname,
        dns: Dns { servers, searches, options },
        sysctls: linux.sysctls.into_iter().collect(),
        resources: linux.resources.map(resources::from_cri),
        overhead: linux.overhead.map(resources::from_cri),
        cgroup_parent: linux.cgroup_parent,
        log_directory: Some(config.log_directory).filter(|path| !path.is_empty()).map(PathBuf::from),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        network: NetworkSource::Cni { port_mappings: ports(&config.port_mappings)? },
        namespaces,
    })
}

/// A pod's metadata in the CRI's words.
pub fn metadata(name: &PodName) -> PodSandboxMetadata {
    let PodName { name, namespace, uid, attempt } = name.clone();
    PodSandboxMetadata { name, uid, namespace, attempt }
}

/// Namespaces as they were asked for. Network and IPC are always the pod's own: anything else was refused.
pub fn namespace_options(asked: AskedNamespaces) -> NamespaceOption {
    let pid = if asked.pid_per_container { NamespaceMode::Container } else { NamespaceMode::Pod };
    let node = UserNamespace { mode: NamespaceMode::Node.into(), ..UserNamespace::default() };
    NamespaceOption {
        pid: pid.into(),
        userns_options: asked.users_of_node.then_some(node),
        ..NamespaceOption::default()
    }
}

fn pod_name(metadata: Option<PodSandboxMetadata>) -> Result<PodName, PodConfigError> {
    let metadata = metadata.ok_or(PodConfigError::Missing("metadata"))?;
    let parts = [
        ("metadata.name", &metadata.name),
        ("metadata.namespace", &metadata.namespace),
        ("metadata.uid", &metadata.uid),
    ];
    if let Some((name, _)) = parts.iter().find(|(_, text)| text.is_empty()) {
        return Err(PodConfigError::Missing(name));
    }
    let PodSandboxMetadata { name, uid, namespace, attempt } = metadata;
    Ok(PodName { name, namespace, uid, attempt })
}

fn namespaces(options: &NamespaceOption) -> Result<AskedNamespaces, PodConfigError> {
    let asked =
        [("Network", "network", options.network), ("PID", "pid", options.pid), ("IPC", "ipc", options.ipc)];
    for (kubernetes, name, mode) in asked {
        match NamespaceMode::try_from(mode) {
            Ok(NamespaceMode::Pod) => {}
            // Each container its own: for processes this is the usual mode.
            Ok(NamespaceMode::Container) if name == "pid" => {}
            Ok(NamespaceMode::Node) => return Err(PodConfigError::HostNamespace(kubernetes)),
            _ => return Err(PodConfigError::NamespaceMode(name, mode)),
        }
    }
    match &options.userns_options {
        Some(user) if user.mode != i32::from(NamespaceMode::Node) => Err(PodConfigError::UserNamespace),
        user => Ok(AskedNamespaces {
            pid_per_container: options.pid() == NamespaceMode::Container,
            users_of_node: user.is_some(),
        }),
    }
}

/// Those mappings that have a host port; the others only document what the pod listens to.
fn ports(mappings: &[CriPort]) -> Result<Vec<PortMapping>, PodConfigError> {
    mappings.iter().filter(|mapping| mapping.host_port != 0).map(port).collect()
}

fn port(mapping: &CriPort) -> Result<PortMapping, PodConfigError> {
    let refuse = || {
        PodConfigError::Port(format!(
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

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::cri::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, SeLinuxOption, WindowsPodSandboxConfig,
    };

    fn pod() -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 };
        PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    fn refusal(change: impl FnOnce(&mut PodSandboxConfig)) -> PodConfigError {
        let mut config = pod();
        change(&mut config);
        sandbox_spec(config, "").unwrap_err()
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
    fn missing_metadata_is_named() {
        assert_eq!(refusal(|c| c.metadata = None), PodConfigError::Missing("metadata"));
        let no_uid = |c: &mut PodSandboxConfig| c.metadata.as_mut().unwrap().uid.clear();
        assert_eq!(refusal(no_uid), PodConfigError::Missing("metadata.uid"));
    }

    #[test]
    fn host_namespaces_are_refused_by_their_kubernetes_names() {
        let node = i32::from(NamespaceMode::Node);
        assert_eq!(refusal(|c| options(c).network = node), PodConfigError::HostNamespace("Network"));
        assert_eq!(refusal(|c| options(c).pid = node), PodConfigError::HostNamespace("PID"));
        let refused = refusal(|c| options(c).ipc = node);
        assert!(refused.to_string().starts_with("hostIPC cannot be given"), "{refused}");
        let container = i32::from(NamespaceMode::Container);
        assert_eq!(
            refusal(|c| options(c).network = container),
            PodConfigError::NamespaceMode("network", container)
        );
    }

    #[test]
    fn user_namespaces_selinux_and_windows_are_refused() {
        let users = Some(UserNamespace::default());
        assert_eq!(refusal(|c| options(c).userns_options = users), PodConfigError::UserNamespace);
        let label = SeLinuxOption { level: "s0:c1".into(), ..Default::default() };
        assert_eq!(refusal(|c| security(c).selinux_options = Some(label)), PodConfigError::SeLinux);
        let windows = Some(WindowsPodSandboxConfig::default());
        assert_eq!(refusal(|c| c.windows = windows), PodConfigError::Windows);
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
    fn namespaces_are_answered_as_they_were_asked_for() {
        let asked = NamespaceOption {
            pid: NamespaceMode::Container.into(),
            userns_options: Some(UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() }),
            ..Default::default()
        };
        let mut config = pod();
        *options(&mut config) = asked.clone();
        assert_eq!(namespace_options(sandbox_spec(config, "").unwrap().namespaces), asked);
        let plain = sandbox_spec(pod(), "").unwrap().namespaces;
        assert_eq!(namespace_options(plain), NamespaceOption::default());
    }
}
