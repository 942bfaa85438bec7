//! ListImages and StreamImages: one entry for each image id, from memory.

use super::Node;
use super::stream::{Messages, messages};
use crate::image::{ImageUser, ListedImage};
use isopod_protocols::cri::{
    Image, Int64Value, ListImagesRequest, ListImagesResponse, StreamImagesRequest, StreamImagesResponse,
};
use tonic::Status;

pub async fn serve(node: &Node, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
    let wanted = request.filter.and_then(|filter| filter.image).unwrap_or_default().image;
    let wanted = (!wanted.is_empty()).then_some(wanted.as_str());
    let images = node.images.list(wanted)?;
    Ok(ListImagesResponse { images: images.iter().map(item).collect() })
}

/// The same as a stream.
pub async fn stream(
    node: &Node,
    request: StreamImagesRequest,
) -> Result<Messages<StreamImagesResponse>, Status> {
    let listed = serve(node, ListImagesRequest { filter: request.filter }).await?;
    Ok(messages(listed.images, |images| StreamImagesResponse { images }))
}

/// An image in the CRI's words: of uid and username exactly one is set, or neither where root is meant.
pub fn item(image: &ListedImage) -> Image {
    let (uid, username) = match &image.user {
        ImageUser::Unset => (None, String::new()),
        ImageUser::Id(uid) => (Some(Int64Value { value: *uid }), String::new()),
        ImageUser::Name(name) => (None, name.clone()),
    };
    Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: false,
    }
}
