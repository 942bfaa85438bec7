//! What is kept of a sandbox on disk, one document each.
//!
//! Documents have a version. Those of version 1, which names none, are read by `record_v1`; those of a
//! version to come are not, and the store sets them aside.

use super::record_v1;
use super::spec::SandboxSpec;
use crate::cgroup::PodCgroup;
use crate::hostile_text;
use crate::hypervisor::VmRecord;
use crate::store;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// State of a sandbox, see [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being made.
    Starting,
    /// Its VM runs.
    Ready,
    /// Its VM ended by itself.
    Lost,
    /// Being taken down, or that failed half-way.
    Stopping,
    /// Holds nothing any more but its record.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Lost => "lost (its VM has ended)",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// What the agent said of itself and its kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Version of the agent.
    pub agent_version: String,
    /// Release of the guest's kernel.
    pub kernel_release: String,
    /// Boot id of the guest.
    pub boot_id: String,
}

impl Guest {
    /// Cut to what an honest agent says: a record must not grow by a guest's will.
    pub(super) fn bounded(self) -> Self {
        let cut = |text: String| hostile_text::line(&text, 128);
        Self {
            agent_version: cut(self.agent_version),
            kernel_release: cut(self.kernel_release),
            boot_id: cut(self.boot_id),
        }
    }
}

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Record {
    /// Always [`Record::VERSION`].
    pub version: u64,
    /// State.
    pub state: State,
    /// As it was asked for.
    pub spec: SandboxSpec,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// Its cgroup on the host.
    pub cgroup: PodCgroup,
    /// Directory of its VM's sockets and log.
    pub directory: PathBuf,
    /// Host user and group id of its VMM.
    pub uid: u32,
    /// Its VM, once it booted.
    pub vm: Option<VmRecord>,
    /// What its agent said of itself.
    pub guest: Guest,
    /// Size of its VM: virtual CPUs, and memory in MiB.
    pub size: (u8, u32),
    /// Most virtual CPUs that it may be given while it runs.
    pub max_vcpus: u8,
    /// Its addresses, IPv4 first, once it has some.
    pub addresses: Vec<IpAddr>,
}

impl Record {
    /// Version of the documents that this daemon writes.
    pub const VERSION: u64 = 2;
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The derived one.
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The derived one.
        let present = |document| Self::deserialize(document);
        store::of_version(deserializer, Self::VERSION, record_v1::read, present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_a_version_to_come_is_refused_by_its_number() {
        let error = serde_json::from_str::<Record>(r#"{"version": 3}"#).unwrap_err().to_string();
        assert!(error.contains("version 3"), "{error}");
    }
}
