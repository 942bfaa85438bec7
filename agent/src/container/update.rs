//! Sets new limits on a container, all or none.

use super::{ContainerError, blocking, to_the_end};
use crate::console;
use crate::error::AgentError;
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::tasks;
use isopod_protocols::agent::*;
use oci_spec::runtime::LinuxResources;
use std::sync::Arc;

/// Answers `UpdateContainer`.
pub async fn update(
    sandbox: &Arc<Sandbox>,
    request: UpdateContainerRequest,
) -> Result<UpdateContainerResponse, AgentError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let resources: LinuxResources = serde_json::from_slice(&request.resources)
        .map_err(|error| ContainerError::from(super::spec::SpecError::Malformed(error)))?;
    let sandbox = sandbox.clone();
    to_the_end(async move {
        let (container, _step) = sandbox.containers.step(&id).await.map_err(ContainerError::from)?;
        let cgroup = container.cgroup();
        // A limit below what is in use returns when the kernel has taken the memory back.
        blocking(move || cgroup.limit(&resources)).await.map_err(ContainerError::from)?;
        // The guest's memory grows before its containers' limits do.
        if let Err((path, error)) = tasks::bound() {
            console::error!("tasks of containers are bounded as before: {}: {error}", path.display());
        }
        Ok(UpdateContainerResponse {})
    })
    .await
}
