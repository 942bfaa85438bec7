//! Sets new limits on a container, all or none.

use super::error::ContainerError;
use super::spec::SpecError;
use super::table::Containers;
use crate::event_loop::to_the_end;
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
        container.cgroup().limit(&resources)?;
        Ok(UpdateContainerResponse {})
    })
    .await
}
