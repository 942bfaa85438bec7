//! ImageStatus: an image that is not here is an answer without one, not an error.

use super::Node;
use super::list_images::item;
use crate::image::Image;
use k8s_cri::v1::{ImageStatusRequest, ImageStatusResponse};
use serde_json::json;
use std::collections::HashMap;
use tonic::Status;

pub async fn serve(node: &Node, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
    let image = node.images.status(&request.image.unwrap_or_default().image)?;
    let info = image.as_ref().filter(|_| request.verbose).map(info).unwrap_or_default();
    Ok(ImageStatusResponse { image: image.as_ref().map(item), info })
}

/// One JSON document, as crictl expects it.
fn info(image: &Image) -> HashMap<String, String> {
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| json!({"chainId": layer.chain_id, "size": layer.size, "path": layer.path}))
        .collect();
    let info = json!({"imageSpec": *image.config, "layers": layers});
    HashMap::from([("info".to_owned(), info.to_string())])
}
