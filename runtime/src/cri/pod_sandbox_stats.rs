//! PodSandboxStats and ListPodSandboxStats: not served yet.

use super::Node;
use k8s_cri::v1::{
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStatsRequest, PodSandboxStatsResponse,
};
use tonic::Status;

pub async fn serve(
    _node: &Node,
    _request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    Err(Status::unimplemented("PodSandboxStats: not served yet"))
}

pub async fn serve_list(
    _node: &Node,
    _request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    Err(Status::unimplemented("ListPodSandboxStats: not served yet"))
}
