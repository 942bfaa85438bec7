//! ExecSync: a limit of 0 is none.

use super::Node;
use isopod_protocols::cri::{ExecSyncRequest, ExecSyncResponse};
use std::time::Duration;
use tonic::Status;

pub async fn serve(node: &Node, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let container = node.containers.get(&request.container_id)?;
    let sandbox = node.sandboxes.get(&container.sandbox_id())?;
    let limit = Duration::from_secs(request.timeout.max(0).unsigned_abs());
    let limit = Some(limit).filter(|limit| !limit.is_zero());
    let outcome = node.containers.exec_sync(&sandbox, &container, request.cmd, limit).await?;
    Ok(ExecSyncResponse { stdout: outcome.stdout, stderr: outcome.stderr, exit_code: outcome.code })
}
