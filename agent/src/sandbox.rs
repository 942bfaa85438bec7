//! The sandbox: all that the agent knows, shared by every call, and its set-up.

use crate::container::Containers;
use crate::error::AgentError;
use crate::storage::Storage;
use crate::sys;
use isopod_protocols::agent::{HelloResponse, SetUpSandboxRequest, SetUpSandboxResponse};
use std::fs;
use std::io;
use std::sync::{Arc, OnceLock};

/// Where the kernel keeps the id of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The state of the guest. One per VM; every RPC gets it as `&Arc<Sandbox>`.
#[derive(Default)]
pub struct Sandbox {
    /// What exists of each container: processes, streams, exits.
    pub containers: Containers,
    /// Layers and roots; absent until the sandbox is set up.
    storage: OnceLock<Storage>,
}

/// Why the sandbox could not be set up, or used.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A call came before SetUpSandbox.
    #[error("the sandbox is not set up: call SetUpSandbox first")]
    NotSetUp,
    /// A file of the guest cannot be read or written.
    #[error("{path} cannot be read or written")]
    Path {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Sandbox {
    /// Layers and roots of containers.
    pub fn storage(&self) -> Result<&Storage, SandboxError> {
        self.storage.get().ok_or(SandboxError::NotSetUp)
    }
}

/// Answers `Hello`.
pub fn hello() -> Result<HelloResponse, AgentError> {
    let boot_id =
        fs::read_to_string(BOOT_ID).map_err(|source| SandboxError::Path { path: BOOT_ID.into(), source })?;
    Ok(HelloResponse {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        boot_id: boot_id.trim().to_owned(),
        uptime_ns: u64::try_from(sys::since_boot().as_nanos()).unwrap_or(u64::MAX),
    })
}

/// Answers `SetUpSandbox`.
pub async fn set_up(
    _sandbox: &Arc<Sandbox>,
    _request: SetUpSandboxRequest,
) -> Result<SetUpSandboxResponse, AgentError> {
    Ok(SetUpSandboxResponse {})
}
