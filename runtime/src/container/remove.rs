//! RemoveContainer: kills what runs, frees what it held in guest and host, forgets it. Its log stays.

use super::{Container, ContainerError, Containers, output};
use crate::sandbox::Sandbox;
use isopod_protocols::agent::{RemoveContainerRequest, Stream};
use std::sync::Arc;
use std::time::Duration;

/// Time that output has to reach the log after the last process has ended.
const DRAIN: Duration = Duration::from_secs(2);

impl Containers {
    /// Removes a container.
    ///
    /// # Errors
    /// Where it could not be killed or freed; then it is still there, and the next call tries again.
    pub async fn remove(
        &self,
        sandbox: Option<&Sandbox>,
        container: &Arc<Container>,
    ) -> Result<(), ContainerError> {
        if let Some(sandbox) = sandbox {
            self.stop(sandbox, container, Duration::ZERO).await?;
        }
        let _operation = container.operation.lock().await;
        container.close_output(DRAIN).await;
        // Without a Ready sandbox there is no guest, and nothing in it to free.
        let entered = match sandbox {
            Some(sandbox) => sandbox.enter().await.ok(),
            None => None,
        };
        match sandbox.zip(entered) {
            Some((sandbox, entered)) => {
                let _pod = self.pod_lock(&container.sandbox_id()).await;
                let request = RemoveContainerRequest { container_id: container.id.clone() };
                entered.machine.agent.remove_container(request).await?;
                let layers = container.record().layers.clone();
                self.forget(container)?;
                // One that never began had not ended.
                self.place(sandbox, None);
                self.detach_layers(&container.sandbox_id(), &entered.machine.vm, &layers).await;
            }
            None => self.forget(container)?,
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            // Made only when it started.
            let _ = std::fs::remove_file(output::position_path(&self.streams, &container.id, stream));
        }
        Ok(())
    }

    /// Kills all containers of a sandbox that is being stopped, and waits, within bounds, until what they wrote is in
    /// their logs. The VM is killed next, whatever happened here.
    pub async fn kill_all(&self, sandbox: &Sandbox) {
        let containers = self.of_sandbox(&sandbox.id);
        let kills = containers.iter().map(|container| async {
            if let Err(error) = self.stop(sandbox, container, Duration::ZERO).await {
                tracing::warn!(sandbox = sandbox.id, container = container.id, %error, "not killed; the VM goes anyway");
            }
            container.close_output(DRAIN).await;
        });
        futures_util::future::join_all(kills).await;
    }

    /// Removes all containers of a sandbox that has been stopped, and is about to be removed.
    pub async fn remove_all(&self, sandbox: &Sandbox) {
        for container in self.of_sandbox(&sandbox.id) {
            if let Err(error) = self.remove(None, &container).await {
                tracing::error!(sandbox = sandbox.id, container = container.id, %error, "container not forgotten");
            }
        }
        // It is there where a container was asked for, also where none could be made.
        self.table().pods.remove(&sandbox.id);
    }
}
