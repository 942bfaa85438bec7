//! StopContainer: an unknown container is a stopped one.

use super::Node;
use crate::container::ContainerError;
use isopod_protocols::cri::{StopContainerRequest, StopContainerResponse};
use std::time::Duration;
use tonic::Status;

pub async fn serve(node: &Node, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
    let container = match node.containers.get(&request.container_id) {
        Err(ContainerError::NotFound(_)) => return Ok(StopContainerResponse {}),
        other => other?,
    };
    let sandbox = node.sandboxes.get(&container.sandbox_id())?;
    let grace = Duration::from_secs(request.timeout.max(0).unsigned_abs());
    node.containers.stop(&sandbox, &container, grace).await?;
    Ok(StopContainerResponse {})
}
