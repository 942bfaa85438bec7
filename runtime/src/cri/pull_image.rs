//! PullImage. A client that goes away drops this future, and with it the pull.

use super::Node;
use crate::image::SentCredentials;
use isopod_protocols::cri::{AuthConfig, PullImageRequest, PullImageResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: PullImageRequest) -> Result<PullImageResponse, Status> {
    let spec = request.image.unwrap_or_default();
    if node.config.vm_of(&spec.runtime_handler).is_none() {
        let handler = spec.runtime_handler;
        return Err(Status::invalid_argument(format!(
            "runtime handler {handler:?} is not configured: add [handlers.{handler}]"
        )));
    }
    let credentials = request.auth.map(credentials).unwrap_or_default();
    node.images.make_room(|| in_use(node)).await?;
    let id = node.images.pull(&spec.image, &credentials).await?;
    Ok(PullImageResponse { image_ref: id.to_string() })
}

/// Ids and names of the images of all containers.
fn in_use(node: &Node) -> Vec<String> {
    let images = node.containers.list().into_iter().map(|container| container.snapshot().description.image);
    images.flat_map(|image| [image.id, image.asked, image.reference]).collect()
}

fn credentials(auth: AuthConfig) -> SentCredentials {
    SentCredentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}
