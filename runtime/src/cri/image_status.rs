//! ImageStatus: an image that is not here is an answer without one, not an error.

use super::Node;
use super::list_images::item;
use crate::image::Layer;
use isopod_protocols::cri::{ImageStatusRequest, ImageStatusResponse};
use serde_json::json;
use std::collections::HashMap;
use tonic::Status;

pub async fn serve(node: &Node, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
    let image = node.images.status(&request.image.unwrap_or_default().image)?;
    let info = match &image {
        Some(image) if request.verbose => {
            info(&node.images.layers(&image.id), &node.images.configuration_document(&image.id).await?)
        }
        _ => HashMap::new(),
    };
    Ok(ImageStatusResponse { image: image.as_ref().map(item), info })
}

/// One JSON document, as crictl expects it, around the configuration as it is on disk.
fn info(layers: &[Layer], configuration: &str) -> HashMap<String, String> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| json!({"chainId": layer.chain_id, "size": layer.size, "path": layer.path}))
        .collect();
    let info = format!("{{\"imageSpec\":{configuration},\"layers\":{}}}", json!(layers));
    HashMap::from([("info".to_owned(), info)])
}
