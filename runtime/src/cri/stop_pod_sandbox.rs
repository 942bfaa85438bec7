//! StopPodSandbox: containers, VM and network go; the record stays. One that is unknown or stopped is no error.

use super::Node;
use crate::sandbox::SandboxError;
use isopod_protocols::cri::{StopPodSandboxRequest, StopPodSandboxResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse, Status> {
    match node.sandboxes.get(&request.pod_sandbox_id) {
        Ok(sandbox) => node.pods.stop(&sandbox).await?,
        Err(SandboxError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(StopPodSandboxResponse {})
}
