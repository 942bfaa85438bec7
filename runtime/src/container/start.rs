//! StartContainer: its output gets its way to the log, then its first process runs.

use super::output::{self, OutputStream};
use super::record::{Exit, State};
use super::{Container, ContainerError, Containers};
use crate::agent_client::AgentError;
use crate::hypervisor::VmHandle;
use crate::sandbox::Sandbox;
use crate::undo::Steps;
use crate::wall_clock::now_ns;
use isopod_protocols::agent::{StartContainerRequest, Stream};
use std::sync::Arc;
use tonic::Code;

impl Containers {
    /// Lets a container run.
    ///
    /// # Errors
    /// [`ContainerError::WrongState`] unless it is Created. A command that cannot be run leaves it Exited.
    #[tracing::instrument(name = "StartContainer", skip_all, fields(sandbox = sandbox.id, container = container.id))]
    pub async fn start(&self, sandbox: &Sandbox, container: &Arc<Container>) -> Result<(), ContainerError> {
        let _operation = container.operation.lock().await;
        container.expect_created()?;
        if container.output().is_none() {
            return Err(ContainerError::BeingRemoved(container.id.clone()));
        }
        let steps = Steps::new("StartContainer");
        let entered = sandbox.enter().await?;
        self.carry_output(container, entered.machine.vm.clone())?;
        steps.done("output")?;
        let request = StartContainerRequest { container_id: container.id.clone() };
        match entered.machine.agent.start_container(request).await {
            Ok(_) => {
                steps.done("process")?;
                // The agent may have told already that it runs, or even that it has ended.
                self.advance(container, State::Running { started_at_ns: now_ns() });
                Ok(steps.done("record")?)
            }
            Err(AgentError::Refused { code: Code::InvalidArgument, message, .. }) => {
                self.advance(container, State::Exited(Exit::never_started(now_ns(), message.clone())));
                Err(ContainerError::Command { id: container.id.clone(), message })
            }
            // It was started, by an earlier daemon that was killed before it noted that: the agent's events tell.
            Err(error @ AgentError::Refused { code: Code::FailedPrecondition, .. }) => Err(error.into()),
            Err(error) => {
                self.advance(container, State::Exited(Exit::never_started(now_ns(), error.to_string())));
                Err(error.into())
            }
        }
    }

    /// Starts the tasks that carry a container's output to its log, unless they run, or its removal has
    /// begun.
    pub(super) fn carry_output(&self, container: &Container, vm: VmHandle) -> Result<(), ContainerError> {
        let mut output = container.output();
        let Some(carried) = output.as_mut().filter(|carried| carried.is_empty()) else { return Ok(()) };
        // A terminal has one stream.
        let terminal = container.record().stdio.terminal;
        let streams: &[Stream] = if terminal { &[Stream::Stdout] } else { &[Stream::Stdout, Stream::Stderr] };
        for stream in streams {
            let position = output::position_path(&self.streams, &container.id, *stream);
            let stream = OutputStream {
                vm: VmHandle::clone(&vm),
                container_id: container.id.clone(),
                stream: *stream,
                states: container.states.subscribe(),
                log: container.log.clone(),
                seats: self.log_seats(&container.sandbox_id()),
            };
            let task = output::carry(stream, &position).map_err(|source| ContainerError::File {
                what: "stream position",
                path: position,
                source,
            })?;
            carried.push(task);
        }
        Ok(())
    }
}
