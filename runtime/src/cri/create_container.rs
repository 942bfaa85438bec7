//! CreateContainer: from a pulled image, in a ready sandbox.

use super::Node;
use crate::container::{Wish, stop_signal};
use isopod_protocols::cri::{CreateContainerRequest, CreateContainerResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: CreateContainerRequest) -> Result<CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    let name = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
    let image = node.images.resolve(name).await?;
    let wanted = config.stop_signal;
    let stop_signal = stop_signal::from_cri(wanted);
    if stop_signal.is_none() && wanted != 0 {
        return Err(Status::invalid_argument(format!("stop_signal {wanted}: the CRI has no such signal")));
    }
    let container = node.containers.create(&sandbox, Wish { config, stop_signal }, image).await?;
    Ok(CreateContainerResponse { container_id: container.id.clone() })
}
