//! UpdateContainerResources: new limits, in the guest first and then in the record.

use super::record::State;
use super::resources::linux_resources;
use super::{Container, ContainerError, Containers};
use crate::resources::Resources;
use crate::sandbox::{Machine, Sandbox};
use isopod_protocols::agent::UpdateContainerRequest;

impl Containers {
    /// Sets new limits on a container that is created or runs. What the update leaves open stays.
    ///
    /// # Errors
    /// The limits are as they were then.
    pub async fn update(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        update: &Resources,
    ) -> Result<(), ContainerError> {
        if let state @ State::Exited(_) = container.state() {
            return Err(ContainerError::WrongState {
                id: container.id.clone(),
                wanted: "created or running",
                state,
            });
        }
        let _operation = container.operation.lock().await;
        let merged = container.record().updated(update);
        let entered = sandbox.enter().await?;
        let updated = self.take(sandbox, &entered.machine, container, merged).await;
        // By what is recorded: the old limits where it failed, and the new ones where another container of
        // the pod changed in between.
        self.place(sandbox, None);
        updated
    }

    async fn take(
        &self,
        sandbox: &Sandbox,
        machine: &Machine,
        container: &Container,
        merged: Resources,
    ) -> Result<(), ContainerError> {
        self.make_room(sandbox, machine, &container.id, &merged).await?;
        let resources = serde_json::to_vec(&linux_resources(&merged)?).map_err(ContainerError::Encode)?;
        let request = UpdateContainerRequest { container_id: container.id.clone(), resources };
        machine.agent.update_container(request).await?;
        self.save_resources(container, merged)
    }
}
