//! Records of sandboxes as daemons up to 0.1 wrote them: with the pod's configuration in the CRI's words, as
//! that crate serialised it.
//!
//! Called by `record`. Reads those fields that later versions keep. They are never written: a record that
//! changes is written in the present form.

use super::record::{Guest, Record, State};
use super::spec::{AskedNamespaces, Dns, PodName, SandboxSpec};
use crate::cgroup::PodCgroup;
use crate::hypervisor::VmRecord;
use crate::network::NetworkSource;
use crate::resources::Resources;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// `NamespaceMode.CONTAINER` of the CRI.
const CONTAINER: i32 = 1;

#[derive(Deserialize)]
struct RecordV1 {
    state: State,
    config: Config,
    handler: String,
    created_at_ns: i64,
    cgroup: PodCgroup,
    directory: PathBuf,
    uid: u32,
    vm: Option<VmRecord>,
    guest: Guest,
    size: (u8, u32),
    #[serde(default = "one")]
    max_vcpus: u8,
    addresses: Vec<IpAddr>,
}

/// The first records had no such field.
fn one() -> u8 {
    1
}

/// The CRI's `PodSandboxConfig`. Its port mappings are left out: the network keeps them itself.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    metadata: PodName,
    hostname: String,
    log_directory: PathBuf,
    dns_config: Option<Dns>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Linux {
    cgroup_parent: String,
    security_context: Option<SecurityContext>,
    sysctls: BTreeMap<String, String>,
    overhead: Option<Resources>,
    resources: Option<Resources>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SecurityContext {
    namespace_options: Option<NamespaceOptions>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamespaceOptions {
    pid: i32,
    userns_options: Option<Value>,
}

/// Reads a record of version 1.
///
/// # Errors
/// Where it is none.
pub fn read(document: Value) -> Result<Record, serde_json::Error> {
    let read: RecordV1 = serde_json::from_value(document)?;
    Ok(Record {
        version: Record::VERSION,
        state: read.state,
        spec: spec(read.config, read.handler),
        created_at_ns: read.created_at_ns,
        cgroup: read.cgroup,
        directory: read.directory,
        uid: read.uid,
        vm: read.vm,
        guest: read.guest,
        size: read.size,
        max_vcpus: read.max_vcpus,
        addresses: read.addresses,
    })
}

fn spec(config: Config, handler: String) -> SandboxSpec {
    let linux = config.linux.unwrap_or_default();
    let options = linux.security_context.and_then(|security| security.namespace_options).unwrap_or_default();
    SandboxSpec {
        id: None,
        name: config.metadata,
        handler,
        hostname: config.hostname,
        dns: config.dns_config.unwrap_or_default(),
        sysctls: linux.sysctls,
        resources: linux.resources,
        overhead: linux.overhead,
        cgroup_parent: linux.cgroup_parent,
        log_directory: Some(config.log_directory).filter(|path| !path.as_os_str().is_empty()),
        labels: config.labels,
        annotations: config.annotations,
        network: NetworkSource::default(),
        namespaces: AskedNamespaces {
            pid_per_container: options.pid == CONTAINER,
            users_of_node: options.userns_options.is_some(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// As the daemon wrote it.
    const DOCUMENT: &str = include_str!("testdata/record-v1.json");

    fn record() -> Record {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn all_that_is_kept_is_read() {
        let Record { state, spec, uid, vm, size, max_vcpus, addresses, .. } = record();
        assert_eq!((state, uid, size, max_vcpus), (State::Ready, 100_007, (1, 192), 2));
        assert_eq!(vm.unwrap().pid, 4242);
        assert_eq!(addresses[1].to_string(), "fd00::7");
        assert_eq!(spec.name.to_string(), "web_default_u1_1");
        assert_eq!((spec.handler.as_str(), spec.hostname.as_str()), ("isopod", "web"));
        assert_eq!(spec.log_directory.as_deref(), Some(Path::new("/var/log/pods/default_web_u1")));
        assert_eq!(spec.dns.options, ["ndots:5"]);
        assert_eq!(spec.sysctls["net.ipv4.ip_forward"], "1");
        assert_eq!(spec.cgroup_parent, "/kubepods/burstable/podu1");
        assert_eq!(spec.resources.unwrap().memory_limit_in_bytes, 128 << 20);
        assert_eq!(spec.overhead.unwrap().memory_limit_in_bytes, 64 << 20);
        assert_eq!(spec.labels["app"], "web");
        assert_eq!(spec.annotations.len(), 1);
        assert_eq!(spec.namespaces, AskedNamespaces { pid_per_container: true, users_of_node: true });
    }

    #[test]
    fn it_is_written_in_the_present_form_and_read_again() {
        let record = record();
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!(written["version"], Record::VERSION);
        assert_eq!(written.get("config"), None);
        assert_eq!(serde_json::from_value::<Record>(written).unwrap(), record);
    }

    #[test]
    fn record_without_most_vcpus_has_one() {
        let mut document: Value = serde_json::from_str(DOCUMENT).unwrap();
        document.as_object_mut().unwrap().remove("max_vcpus");
        assert_eq!(serde_json::from_value::<Record>(document).unwrap().max_vcpus, 1);
    }
}
