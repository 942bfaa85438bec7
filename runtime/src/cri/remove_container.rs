//! RemoveContainer: an unknown container is a removed one.

use super::Node;
use crate::container::ContainerError;
use isopod_protocols::cri::{RemoveContainerRequest, RemoveContainerResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: RemoveContainerRequest) -> Result<RemoveContainerResponse, Status> {
    let container = match node.containers.get(&request.container_id) {
        Err(ContainerError::NotFound(_)) => return Ok(RemoveContainerResponse {}),
        other => other?,
    };
    let sandbox = node.sandboxes.get(&container.sandbox_id()).ok();
    node.containers.remove(sandbox.as_deref(), &container).await?;
    Ok(RemoveContainerResponse {})
}
