//! StopContainer: the container's own stop signal, its grace, then SIGKILL for all of its processes.

use super::record::State;
use super::{Container, ContainerError, Containers};
use crate::sandbox::Sandbox;
use isopod_protocols::agent::SignalProcessRequest;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time that a killed container has to be gone.
const KILLED: Duration = Duration::from_secs(20);

impl Containers {
    /// Ends a container. One that does not run is no error.
    ///
    /// Stops of one container may run side by side: a shorter grace is not held up by a longer one.
    ///
    /// # Errors
    /// Where it could not be killed.
    pub async fn stop(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        grace: Duration,
    ) -> Result<(), ContainerError> {
        if !container.is_running() {
            return Ok(());
        }
        let Some(machine) = sandbox.machine_until_stopped() else {
            // The VM has ended, and the container with it.
            return container.exited(KILLED).await;
        };
        let signal = |signal: i32, whole_tree| SignalProcessRequest {
            container_id: container.id.clone(),
            process_id: String::new(),
            signal: signal.cast_unsigned(),
            whole_tree,
        };
        if !grace.is_zero() {
            if !container.asked_to_stop.swap(true, Ordering::Relaxed) {
                let stop_signal = container.record().stop_signal;
                machine.agent.signal_process(signal(stop_signal, false)).await?;
            }
            if container.exited(grace).await.is_ok() {
                return Ok(());
            }
        }
        machine.agent.signal_process(signal(libc::SIGKILL, true)).await?;
        container.exited(KILLED).await
    }
}

impl Container {
    /// Waits until it has exited.
    async fn exited(&self, limit: Duration) -> Result<(), ContainerError> {
        let mut states = self.states.subscribe();
        // The sender is part of `self`: the only way out is the state.
        let exited = states.wait_for(|state| matches!(state, State::Exited(_)));
        let late = |_| ContainerError::StillRunning { id: self.id.clone(), seconds: limit.as_secs() };
        tokio::time::timeout(limit, exited).await.map(drop).map_err(late)
    }
}
