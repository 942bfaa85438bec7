//! ReopenContainerLog: after kubelet has renamed the file.

use super::Node;
use isopod_protocols::cri::{ReopenContainerLogRequest, ReopenContainerLogResponse};
use tonic::Status;

pub async fn serve(
    node: &Node,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Status> {
    node.containers.get(&request.container_id)?.reopen_log().await?;
    Ok(ReopenContainerLogResponse {})
}
