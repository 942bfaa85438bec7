//! What is kept of a sandbox on disk, one document each.

use crate::cgroup::PodCgroup;
use crate::hostile_text;
use crate::hypervisor::VmRecord;
use k8s_cri::v1::PodSandboxConfig;
use serde::{Deserialize, Serialize};
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
pub struct Record {
    /// State.
    pub state: State,
    /// What kubelet asked for, as it asked.
    pub config: PodSandboxConfig,
    /// The runtime handler it asked for.
    pub handler: String,
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
    #[serde(default = "one")]
    pub max_vcpus: u8,
    /// Its addresses, IPv4 first, once it has some.
    pub addresses: Vec<IpAddr>,
}

/// Of records that an earlier version wrote.
fn one() -> u8 {
    1
}
