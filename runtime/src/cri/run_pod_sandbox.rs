//! RunPodSandbox: a VM for a pod. `sandbox_spec` translates the message; the steps are those of
//! `sandbox::start`.

use super::Node;
use super::sandbox_spec::{PodConfigError, sandbox_spec};
use isopod_protocols::cri::{RunPodSandboxRequest, RunPodSandboxResponse};
use tonic::Status;

pub async fn serve(node: &Node, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
    let config = request.config.ok_or(PodConfigError::Missing("config"))?;
    let spec = sandbox_spec(config, &request.runtime_handler)?;
    let pod_sandbox_id = node.sandboxes.start(spec).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}
