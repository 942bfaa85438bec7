//! RunPodSandbox: a VM for a pod. The story is `sandbox::start`.

use super::Node;
use crate::sandbox::{Refusal, SandboxError};
use isopod_protocols::cri::{RunPodSandboxRequest, RunPodSandboxResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
    let config = request.config.ok_or(SandboxError::Refused(Refusal::Missing("config")))?;
    let pod_sandbox_id = node.sandboxes.start(config, &request.runtime_handler).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}
