//! UpdatePodSandboxResources: the VM follows its pod's new limits.

use super::{Node, resources};
use isopod_protocols::cri::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};
use tonic::Status;

pub async fn serve(
    node: &Node,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    let [resources, overhead] = [request.resources, request.overhead].map(|one| one.map(resources::from_cri));
    node.sandboxes.resize(&sandbox, resources.as_ref(), overhead.as_ref()).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
