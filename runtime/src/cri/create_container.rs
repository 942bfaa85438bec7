//! CreateContainer: from a pulled image, in a ready sandbox.

use super::Node;
use k8s_cri::v1::{CreateContainerRequest, CreateContainerResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: CreateContainerRequest) -> Result<CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    let name = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
    let image = node.images.resolve(name)?;
    let container = node.containers.create(&sandbox, config, &image).await?;
    Ok(CreateContainerResponse { container_id: container.id.clone() })
}
