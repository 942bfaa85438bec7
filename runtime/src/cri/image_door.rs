//! `runtime.v1.ImageService`. Each RPC is one line here and one file of its name; what it does is in `image`.

use super::stream::Messages;
use super::{Answer, Node, image_fs_info, image_status, list_images, pull_image, remove_image};
use async_trait::async_trait;
use isopod_protocols::cri::image_service_server::ImageService;
use isopod_protocols::cri::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StreamImagesRequest, StreamImagesResponse,
};
use std::sync::Arc;
use tonic::{Request, Response};

/// `runtime.v1.ImageService`.
pub struct ImageDoor {
    node: Arc<Node>,
}

impl ImageDoor {
    /// The service, on `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[async_trait]
impl ImageService for ImageDoor {
    type StreamImagesStream = Messages<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        list_images::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        list_images::stream(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        image_status::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        pull_image::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        remove_image::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(&self, request: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        image_fs_info::serve(&self.node, request.into_inner()).await.map(Response::new)
    }
}
