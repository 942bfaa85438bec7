//! UpdatePodSandboxResources: the VM follows its pod's new limits.

use super::Node;
use isopod_protocols::cri_additions::{
    LinuxContainerResources, UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
};
use k8s_cri::v1;
use tonic::Status;

pub async fn serve(
    node: &Node,
    ((), request): ((), UpdatePodSandboxResourcesRequest),
) -> Result<(UpdatePodSandboxResourcesResponse, ()), Status> {
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    let [resources, overhead] = [request.resources, request.overhead].map(|one| one.map(whole));
    node.sandboxes.resize(&sandbox, resources.as_ref(), overhead.as_ref()).await?;
    Ok((UpdatePodSandboxResourcesResponse {}, ()))
}

/// As the rest of the runtime knows them.
fn whole(resources: LinuxContainerResources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        memory_limit_in_bytes: resources.memory_limit_in_bytes,
        ..Default::default()
    }
}
