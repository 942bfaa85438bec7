//! RemoveImage: removes an image with all its names. One that is not here is removed already.

use super::Node;
use isopod_protocols::cri::{RemoveImageRequest, RemoveImageResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
    node.images.remove(&request.image.unwrap_or_default().image).await?;
    Ok(RemoveImageResponse {})
}
