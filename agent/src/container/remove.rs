//! Removes a container: kills what is left of it and takes back all that its creation made.
//!
//! Every step tolerates that there is nothing to do, so this is also how a failed creation is undone, and a removal that
//! failed is taken up again by the next call.

use super::{Container, ContainerError};
use crate::error::AgentError;
use crate::id::Id;
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::task::{blocking, to_the_end};
use isopod_protocols::agent::*;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a killed process may take to be collected once its cgroup is empty.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Answers `RemoveContainer`.
pub async fn remove(
    sandbox: &Arc<Sandbox>,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, AgentError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let Some(container) = sandbox.containers.container(&id) else { return Ok(RemoveContainerResponse {}) };
    let sandbox = sandbox.clone();
    to_the_end(async move {
        let _step = container.step.clone().lock_owned().await;
        let now = sandbox.containers.container(&id);
        // Another call has removed it while this one waited.
        if now.is_some_and(|now| Arc::ptr_eq(&now, &container)) {
            release(&sandbox, &container).await?;
            sandbox.containers.forget(&id);
        }
        Ok(RemoveContainerResponse {})
    })
    .await
}

/// Takes back all that was made of a container. The caller holds its step.
pub async fn release(sandbox: &Arc<Sandbox>, container: &Arc<Container>) -> Result<(), AgentError> {
    container.cgroup().remove().await.map_err(ContainerError::from)?;
    // Waits for execs that are being made: they are among the container's after that, or have failed.
    drop(container.namespaces.write().await.take());
    let execs: Vec<Arc<Process>> = container.execs().values().flatten().cloned().collect();
    for process in execs.iter().chain(container.first_process()) {
        tokio::time::timeout(END_DEADLINE, process.exit())
            .await
            .map_err(|_| ContainerError::Immortal(container.id().clone()))?;
        process.streams().close();
    }
    for directory in [container.state(), container.bundle()] {
        remove_directory(&directory).map_err(container.system("directory", "removed"))?;
    }
    let (sandbox, container) = (sandbox.clone(), container.clone());
    blocking(move || match sandbox.storage() {
        Ok(storage) => Ok(storage.remove_root(container.id())?),
        // Without storage no root was made.
        Err(_) => Ok(()),
    })
    .await
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
