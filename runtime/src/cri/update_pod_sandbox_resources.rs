//! UpdatePodSandboxResources: refused, as a running VM keeps its size.

use super::Node;
use isopod_protocols::cri_additions::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};
use tonic::Status;

pub async fn serve(
    node: &Node,
    ((), request): ((), UpdatePodSandboxResourcesRequest),
) -> Result<(UpdatePodSandboxResourcesResponse, ()), Status> {
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    Err(Status::unimplemented(format!(
        "sandbox {}: a running virtual machine cannot be resized yet: restart the pod with its new size",
        sandbox.id
    )))
}
