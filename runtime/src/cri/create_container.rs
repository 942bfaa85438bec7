//! CreateContainer: from a pulled image, in a ready sandbox. `container_spec` translates the message; the
//! steps are those of `container::create`.

use super::Node;
use super::container_spec::container_spec;
use isopod_protocols::cri::{CreateContainerRequest, CreateContainerResponse};
use std::sync::Arc;
use tonic::Status;

pub async fn serve(node: &Node, request: CreateContainerRequest) -> Result<CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    let name = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
    let image = node.images.resolve(name).await?;
    // Whoever built the image decides how much there is to describe: not on the threads that serve calls.
    let pod = Arc::clone(&sandbox);
    let translating = move || container_spec(config, &pod.spec, &image);
    let translated = tokio::task::spawn_blocking(translating).await;
    let spec = translated.map_err(|_| Status::unavailable("the daemon is going down"))??;
    let container = node.containers.create(&sandbox, spec).await?;
    Ok(CreateContainerResponse { container_id: container.id.clone() })
}
