//! RunPodSandbox: not served yet.

use super::Node;
use k8s_cri::v1::{RunPodSandboxRequest, RunPodSandboxResponse};
use tonic::Status;

pub async fn serve(_node: &Node, _request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
    Err(Status::unimplemented("RunPodSandbox: not served yet"))
}
