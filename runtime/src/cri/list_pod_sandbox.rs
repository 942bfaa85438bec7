//! ListPodSandbox: not served yet.

use super::Node;
use k8s_cri::v1::{ListPodSandboxRequest, ListPodSandboxResponse};
use tonic::Status;

pub async fn serve(_node: &Node, _request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse, Status> {
    Err(Status::unimplemented("ListPodSandbox: not served yet"))
}
