//! Sets new limits on a container, all or none.

use super::error::ContainerError;
use super::spec::SpecError;
use super::table::Containers;
use crate::cgroup::tasks;
use crate::console;
use crate::event_loop::{blocking, to_the_end};
use crate::id::Id;
use isopod_protocols::agent::{UpdateContainerRequest, UpdateContainerResponse};
use oci_spec::runtime::LinuxResources;
use std::sync::Arc;

/// Answers `UpdateContainer`.
pub async fn update(
    containers: &Arc<Containers>,
    request: UpdateContainerRequest,
) -> Result<UpdateContainerResponse, ContainerError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let resources: LinuxResources = serde_json::from_slice(&request.resources).map_err(SpecError::from)?;
    let containers = containers.clone();
    to_the_end(async move {
        let (container, _step) = containers.step(&id).await?;
        let cgroup = container.cgroup();
        // A limit below what is in use returns when the kernel has taken the memory back.
        blocking(move || cgroup.limit(&resources)).await?;
        // The guest's memory grows before its containers' limits do.
        if let Err((path, error)) = tasks::bound() {
            console::error!("tasks of containers are bounded as before: {}: {error}", path.display());
        }
        Ok(UpdateContainerResponse {})
    })
    .await
}
