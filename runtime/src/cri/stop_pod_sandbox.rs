//! StopPodSandbox: containers, VM and network go; the record stays. One that is unknown or stopped is no error.

use super::Node;
use crate::sandbox::{Sandbox, SandboxError};
use isopod_protocols::cri::{StopPodSandboxRequest, StopPodSandboxResponse};
use std::sync::Arc;
use tonic::Status;

pub async fn serve(node: &Node, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse, Status> {
    match node.sandboxes.get(&request.pod_sandbox_id) {
        Ok(sandbox) => stop(node, &sandbox).await?,
        Err(SandboxError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(StopPodSandboxResponse {})
}

/// Takes a sandbox down with all that runs in it.
pub async fn stop(node: &Node, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    node.sandboxes.begin_stop(sandbox)?;
    node.containers.kill_all(sandbox).await;
    node.sandboxes.stop(sandbox).await
}
