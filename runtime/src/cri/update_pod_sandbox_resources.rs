//! UpdatePodSandboxResources: the VM follows its pod's new limits.

use super::Node;
use isopod_protocols::cri::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};
use tonic::Status;

pub async fn serve(
    node: &Node,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    node.sandboxes.resize(&sandbox, request.resources.as_ref(), request.overhead.as_ref()).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
