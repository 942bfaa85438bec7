//! PodSandboxStatus: not served yet.

use super::Node;
use k8s_cri::v1::{PodSandboxStatusRequest, PodSandboxStatusResponse};
use tonic::Status;

pub async fn serve(
    _node: &Node,
    _request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    Err(Status::unimplemented("PodSandboxStatus: not served yet"))
}
