//! Version: four words, none of them empty, or kubelet does not start.

use super::Node;
use isopod_protocols::cri::{VersionRequest, VersionResponse};
use tonic::Status;

/// Version of the kubelet's runtime API, as kubelet expects it.
const API_VERSION: &str = "0.1.0";

pub async fn serve(_node: &Node, _request: VersionRequest) -> Result<VersionResponse, Status> {
    Ok(VersionResponse {
        version: API_VERSION.to_owned(),
        runtime_name: "isopod".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}
