//! Status: not served yet.

use super::Node;
use k8s_cri::v1::{StatusRequest, StatusResponse};
use tonic::Status;

pub async fn serve(_node: &Node, _request: StatusRequest) -> Result<StatusResponse, Status> {
    Err(Status::unimplemented("Status: not served yet"))
}
