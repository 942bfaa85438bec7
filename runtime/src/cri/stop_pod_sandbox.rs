//! StopPodSandbox: not served yet.

use super::Node;
use k8s_cri::v1::{StopPodSandboxRequest, StopPodSandboxResponse};
use tonic::Status;

pub async fn serve(_node: &Node, _request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse, Status> {
    Err(Status::unimplemented("StopPodSandbox: not served yet"))
}
