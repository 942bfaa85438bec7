//! Removes a container: kills what is left of it and takes back all that its creation made.
//!
//! Every step tolerates that there is nothing to do, so this is also how a failed creation is undone, and a
//! removal that failed is taken up again by the next call.

use super::error::ContainerError;
use super::table::{Container, Containers};
use crate::event_loop::{blocking, to_the_end};
use crate::id::Id;
use crate::storage::Storage;
use isopod_protocols::agent::{RemoveContainerRequest, RemoveContainerResponse};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a killed process may take to be collected once its cgroup is empty.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Answers `RemoveContainer`. Without storage no root was made.
pub async fn remove(
    containers: &Arc<Containers>,
    storage: Option<&Arc<Storage>>,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, ContainerError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let Some(container) = containers.container(&id) else { return Ok(RemoveContainerResponse {}) };
    let (containers, storage) = (containers.clone(), storage.cloned());
    to_the_end(async move {
        let _step = container.lock().await;
        let now = containers.container(&id);
        // Another call has removed it while this one waited.
        if now.is_some_and(|now| Arc::ptr_eq(&now, &container)) {
            release(storage, &container).await?;
            containers.forget(&id);
        }
        Ok(RemoveContainerResponse {})
    })
    .await
}

/// Takes back all that was made of a container. The caller holds its step.
pub async fn release(
    storage: Option<Arc<Storage>>,
    container: &Arc<Container>,
) -> Result<(), ContainerError> {
    container.cgroup().remove().await?;
    container.drop_namespaces().await;
    let execs = container.all_execs();
    for process in execs.iter().map(|(_, process)| process).chain(container.first_process()) {
        tokio::time::timeout(END_DEADLINE, process.exit())
            .await
            .map_err(|_| ContainerError::Immortal(container.id().clone()))?;
        process.streams().close();
    }
    for directory in [container.library_directory(), container.bundle()] {
        remove_directory(&directory).map_err(container.system("directory", "removed"))?;
    }
    let Some(storage) = storage else { return Ok(()) };
    let id = container.id().clone();
    Ok(blocking(move || storage.remove_root(&id)).await?)
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
