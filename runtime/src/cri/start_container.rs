//! StartContainer.

use super::Node;
use isopod_protocols::cri::{StartContainerRequest, StartContainerResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: StartContainerRequest) -> Result<StartContainerResponse, Status> {
    let container = node.containers.get(&request.container_id)?;
    let sandbox = node.sandboxes.get(&container.sandbox_id())?;
    node.containers.start(&sandbox, &container).await?;
    Ok(StartContainerResponse {})
}
