//! RemovePodSandbox: a sandbox and its containers are forgotten, after a stop where that is needed. One that is unknown
//! is no error.

use super::Node;
use crate::sandbox::SandboxError;
use isopod_protocols::cri::{RemovePodSandboxRequest, RemovePodSandboxResponse};
use tonic::Status;

pub async fn serve(
    node: &Node,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    match node.sandboxes.get(&request.pod_sandbox_id) {
        Ok(sandbox) => node.pods.remove(&sandbox).await?,
        Err(SandboxError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(RemovePodSandboxResponse {})
}
