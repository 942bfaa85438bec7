//! The sandbox: all that the agent knows, shared by every call, and its set-up.

use crate::container::Containers;
use crate::error::AgentError;
use crate::storage::Storage;
use isopod_protocols::agent::{HelloResponse, SetUpSandboxRequest, SetUpSandboxResponse};
use std::sync::{Arc, OnceLock};

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
}

impl Sandbox {
    /// Layers and roots of containers.
    pub fn storage(&self) -> Result<&Storage, SandboxError> {
        self.storage.get().ok_or(SandboxError::NotSetUp)
    }
}

/// Answers `Hello`.
pub fn hello() -> Result<HelloResponse, AgentError> {
    Ok(HelloResponse { agent_version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() })
}

/// Answers `SetUpSandbox`.
pub async fn set_up(
    _sandbox: &Arc<Sandbox>,
    _request: SetUpSandboxRequest,
) -> Result<SetUpSandboxResponse, AgentError> {
    Ok(SetUpSandboxResponse {})
}
