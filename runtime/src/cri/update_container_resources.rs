//! UpdateContainerResources.

use super::{Node, resources};
use isopod_protocols::cri::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};
use tonic::Status;

pub async fn serve(
    node: &Node,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let container = node.containers.get(&request.container_id)?;
    let sandbox = node.sandboxes.get(&container.sandbox_id())?;
    let limits =
        request.linux.ok_or_else(|| Status::invalid_argument("linux is missing: name the new limits"))?;
    node.containers.update(&sandbox, &container, &resources::from_cri(limits)).await?;
    Ok(UpdateContainerResourcesResponse {})
}
