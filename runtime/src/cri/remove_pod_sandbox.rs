//! RemovePodSandbox: not served yet.

use super::Node;
use k8s_cri::v1::{RemovePodSandboxRequest, RemovePodSandboxResponse};
use tonic::Status;

pub async fn serve(
    _node: &Node,
    _request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    Err(Status::unimplemented("RemovePodSandbox: not served yet"))
}
