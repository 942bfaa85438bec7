//! Whether a sandbox can be as it is asked for: a specification in, a [`Plan`] out, or one sentence that says
//! why not and what to do.
//!
//! Nothing is taken here, so nothing is to be undone. What only the CRI can ask for, `cri` refuses.

use super::spec::{Dns, SandboxSpec};
use crate::cgroup;
use crate::config::{Config, VmConfig};
use crate::cpu_list::CpuList;
use crate::hypervisor::useful_vcpus;
use crate::id::is_valid;
use crate::network::NetworkSource;
use crate::resources::Resources;
use std::net::IpAddr;
use std::path::Path;

/// Longest host name that Linux takes (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;

/// Memory in MiB that a VMM needs for itself, taken from a pod's overhead: guest memory and VMM together must fit the
/// limit that kubelet puts on the pod's cgroup.
const VMM_MIB: u64 = 16;

/// Least guest memory in MiB.
const MIN_MEMORY_MIB: u64 = 64;

/// Why a sandbox cannot be as it is asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SandboxSpecError {
    /// An id that is no plain name.
    #[error("pod sandbox id {0:?} cannot be used: give another one of letters, digits, '-', '_' and '.'")]
    Id(String),
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
    /// The directory for logs.
    #[error("log directory {0:?} is not an absolute path")]
    LogDirectory(String),
    /// The network namespace.
    #[error("network namespace {0:?} is not an absolute path")]
    Namespace(String),
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

/// A sandbox that can be made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// As it was asked for.
    pub spec: SandboxSpec,
    /// Settings of the handler's VMs.
    pub vm: VmConfig,
    /// Size of this pod's VM.
    pub size: Size,
}

impl Plan {
    /// Checks everything that can be known before anything is taken.
    ///
    /// # Errors
    /// See [`SandboxSpecError`].
    pub fn new(node: &Config, spec: SandboxSpec) -> Result<Self, SandboxSpecError> {
        if let Some(id) = spec.id.as_ref().filter(|id| !is_valid(id) || cgroup::is_reserved(id)) {
            return Err(SandboxSpecError::Id(id.clone()));
        }
        let vm = node.vm_of(&spec.handler).ok_or_else(|| unknown_handler(node, &spec.handler))?;
        spec.sysctls.iter().try_for_each(|(name, value)| sysctl(name, value))?;
        hostname(&spec.hostname)?;
        dns(&spec.dns)?;
        let relative = |path: &&Path| !path.is_absolute();
        if let Some(logs) = spec.log_directory.as_deref().filter(relative) {
            return Err(SandboxSpecError::LogDirectory(logs.display().to_string()));
        }
        if let NetworkSource::Namespace { path } = &spec.network
            && !path.is_absolute()
        {
            return Err(SandboxSpecError::Namespace(path.display().to_string()));
        }
        let size = size(&vm, spec.resources.as_ref(), spec.overhead.as_ref())?;
        Ok(Self { spec, vm, size })
    }
}

fn unknown_handler(node: &Config, handler: &str) -> SandboxSpecError {
    let known: Vec<String> = node.handler_names().iter().map(|name| format!("{name:?}")).collect();
    SandboxSpecError::UnknownHandler { name: handler.to_owned(), known: known.join(", ") }
}

fn sysctl(name: &str, value: &str) -> Result<(), SandboxSpecError> {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    let named = name.split(['.', '/']).count() > 1 && name.split(['.', '/']).all(part);
    if named && !value.contains(['\n', '\0']) {
        Ok(())
    } else {
        Err(SandboxSpecError::Sysctl(name.to_owned()))
    }
}

fn hostname(name: &str) -> Result<(), SandboxSpecError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.len() <= MAX_HOSTNAME && name.chars().all(plain) {
        Ok(())
    } else {
        Err(SandboxSpecError::Hostname(name.to_owned()))
    }
}

fn dns(config: &Dns) -> Result<(), SandboxSpecError> {
    // A link-local server may name its interface: fe80::1%eth0.
    let address = |s: &String| s.split('%').next().is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
    let word = |s: &String| !s.is_empty() && !s.contains(|c: char| c.is_whitespace() || c.is_control());
    let bad = |what, list: &[String], good: &dyn Fn(&String) -> bool| {
        list.iter().find(|s| !(good(s) && word(s))).map(|s| SandboxSpecError::Dns(what, s.clone()))
    };
    let first = bad("server", &config.servers, &address)
        .or_else(|| bad("search domain", &config.searches, &word))
        .or_else(|| bad("option", &config.options, &word));
    first.map_or(Ok(()), Err)
}

/// The VM's size: what the pod's containers may use in all, and what the guest needs beside them.
pub fn size(
    settings: &VmConfig,
    resources: Option<&Resources>,
    overhead: Option<&Resources>,
) -> Result<Size, SandboxSpecError> {
    let mut size = Size { vcpus: settings.vcpus, memory_mib: settings.memory_mib };
    let cpus = |r: Option<&Resources>| match r {
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
    let bytes = |r: Option<&Resources>| {
        r.and_then(|r| u64::try_from(r.memory_limit_in_bytes).ok()).filter(|bytes| *bytes > 0)
    };
    if let Some(limit) = bytes(resources) {
        let own = match bytes(overhead) {
            Some(overhead) => overhead.div_ceil(1 << 20).saturating_sub(VMM_MIB),
            None => u64::from(settings.memory_mib),
        };
        // What is added to a VM comes in pieces of 2 MiB.
        let wanted = (limit.div_ceil(1 << 20) + own).max(MIN_MEMORY_MIB).next_multiple_of(2);
        size.memory_mib = u32::try_from(wanted).map_err(|_| {
            SandboxSpecError::TooLarge(format!("{wanted} MiB of memory"), format!("{} MiB", u32::MAX))
        })?;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut SandboxSpec)) -> SandboxSpecError {
        let mut spec = SandboxSpec::default();
        change(&mut spec);
        Plan::new(&Config::default(), spec).unwrap_err()
    }

    #[test]
    fn plain_pod_gets_the_defaults() {
        let spec = SandboxSpec { handler: "isopod".into(), ..SandboxSpec::default() };
        let plan = Plan::new(&Config::default(), spec).unwrap();
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
        let mut spec = SandboxSpec::default();
        spec.annotations = hostile.map(|key| (key.to_owned(), "/bin/sh".to_owned())).into();
        spec.labels = spec.annotations.clone();
        let [plain, annotated] =
            [SandboxSpec::default(), spec].map(|spec| Plan::new(&Config::default(), spec).unwrap());
        assert_eq!((annotated.vm, annotated.size), (plain.vm, plain.size));
        assert_eq!(annotated.spec.handler, plain.spec.handler);
        assert_eq!(annotated.spec.network, plain.spec.network);
    }

    #[test]
    fn unknown_handler_lists_those_there_are() {
        let refused = refusal(|spec| spec.handler = "runc".into()).to_string();
        assert!(refused.contains("\"runc\"") && refused.contains("\"\", \"isopod\""), "{refused}");
    }

    #[test]
    fn id_that_is_no_plain_name_or_another_cgroups_is_refused() {
        for id in ["../x", "", ".", "a/b", "template-1", "converters"] {
            let refused = refusal(|spec| spec.id = Some(id.to_owned()));
            assert_eq!(refused, SandboxSpecError::Id(id.to_owned()));
        }
        let spec = SandboxSpec { id: Some("0f".repeat(32)), ..SandboxSpec::default() };
        Plan::new(&Config::default(), spec).unwrap();
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
            dns(&Dns { servers: list(servers), searches: list(searches), options: list(opts) })
        };
        with(&["10.0.0.10", "fe80::1%eth0"], &["svc.cluster.local"], &["ndots:5"]).unwrap();
        assert!(with(&["dns.example"], &[], &[]).is_err());
        assert!(with(&["10.0.0.10%\nsearch x"], &[], &[]).is_err());
        assert!(with(&[], &["a\nnameserver 6.6.6.6"], &[]).is_err());
        assert!(with(&[], &[], &["a b"]).is_err());
    }

    #[test]
    fn size_follows_limits_and_overhead() {
        let base = VmConfig { vcpus: 1, memory_mib: 256, ..VmConfig::default() };
        let resources = |cpu_quota, mib: i64| Resources {
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
        let most = Resources {
            cpu_quota: i64::MAX,
            cpu_period: 1,
            memory_limit_in_bytes: i64::MAX,
            ..Default::default()
        };
        assert!(size(&VmConfig::default(), Some(&most), Some(&most)).is_err());
    }

    #[test]
    fn long_hostname_and_relative_paths_are_refused() {
        let hostname = refusal(|spec| spec.hostname = "x".repeat(65));
        assert!(matches!(hostname, SandboxSpecError::Hostname(_)));
        let logs = refusal(|spec| spec.log_directory = Some("logs".into()));
        assert!(matches!(logs, SandboxSpecError::LogDirectory(_)));
        let namespace = refusal(|spec| spec.network = NetworkSource::Namespace { path: "netns".into() });
        assert!(matches!(namespace, SandboxSpecError::Namespace(_)));
    }
}
