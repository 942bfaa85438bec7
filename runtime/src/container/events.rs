//! What happens in guests, as their agents tell it, and what a starting daemon finds: both move containers' states.
//!
//! The task of [`Containers::follow`] is the only reader of sandboxes' events; it lives as long as the daemon.

use super::record::{Exit, Record, State};
use super::{Container, ContainerError, Containers, LogFile, now_ns};
use crate::hypervisor::VmHandle;
use crate::sandbox::SandboxEvent;
use isopod_protocols::agent::{self, ContainerState, event::Event};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;

impl Containers {
    /// Takes every event until there are no more sandboxes.
    pub(super) async fn follow(self: Arc<Self>, mut events: mpsc::Receiver<SandboxEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                SandboxEvent::Agent { sandbox_id, event } => match event.event {
                    Some(Event::Snapshot(all)) => self.compare(&sandbox_id, &all.containers),
                    Some(Event::Changed(one)) => self.hear(&sandbox_id, &one),
                    None => {}
                },
                SandboxEvent::Gone { sandbox_id } => self.lose_all(&sandbox_id),
            }
        }
    }

    /// A guest speaks only of its own containers: what it says of others is not heard.
    fn hear(&self, sandbox_id: &str, told: &ContainerState) {
        let Ok(container) = self.get(&told.container_id) else { return };
        if container.id != told.container_id || container.sandbox_id() != sandbox_id {
            return;
        }
        let state = match (told.state(), &told.exit) {
            (agent::State::Running, _) => State::Running { started_at_ns: told.started_at_ns },
            (agent::State::Exited, Some(exit)) => State::Exited(Exit::told(told.started_at_ns, exit)),
            _ => return,
        };
        self.advance(&container, state);
    }

    /// A snapshot: it also tells of containers that it leaves out.
    fn compare(&self, sandbox_id: &str, all: &[ContainerState]) {
        all.iter().for_each(|told| self.hear(sandbox_id, told));
        let named: HashSet<_> = all.iter().map(|told| told.container_id.as_str()).collect();
        for container in self.of_sandbox(sandbox_id) {
            if container.is_running() && !named.contains(container.id.as_str()) {
                self.lose(&container);
            }
        }
    }

    fn lose_all(&self, sandbox_id: &str) {
        self.of_sandbox(sandbox_id).iter().for_each(|container| self.lose(container));
    }

    fn lose(&self, container: &Container) {
        let started_at_ns = match container.state() {
            State::Running { started_at_ns } => started_at_ns,
            _ => 0,
        };
        self.advance(container, State::Exited(Exit::lost(started_at_ns, now_ns())));
    }

    /// Moves a container on; a state that it has passed already changes nothing.
    pub(super) fn advance(&self, container: &Container, next: State) {
        {
            let mut record = container.record();
            let moves = match record.state {
                State::Created => next != State::Created,
                State::Running { .. } => matches!(next, State::Exited(_)),
                State::Exited(_) => false,
            };
            if !moves {
                return;
            }
            let next = with_start(&record, next);
            tracing::info!(sandbox = record.sandbox_id, container = container.id, state = %next, "container");
            record.state = next;
            if let Err(error) = self.records.put(&container.id, &record) {
                tracing::error!(container = container.id, %error, "new state is not on disk");
            }
        }
        container.changes.send_replace(());
    }

    /// Takes over what an earlier daemon recorded.
    pub(super) fn load(self: &Arc<Self>) -> Result<(), ContainerError> {
        let loaded = self.records.load()?;
        for path in &loaded.corrupt {
            tracing::error!(path = %path.display(), "container record is corrupt and was set aside");
        }
        for (id, record) in loaded.documents {
            let metadata = record.config.metadata.clone().unwrap_or_default();
            let name = format!("{}/{}/{}", record.sandbox_id, metadata.name, metadata.attempt);
            let log = record.log_path.as_deref().and_then(|path| match LogFile::open(path) {
                Ok(log) => Some(Arc::new(log)),
                Err(error) => {
                    tracing::error!(container = id, %error, "output is dropped");
                    None
                }
            });
            let mut table = self.table();
            table.names.insert(name.clone(), id.clone());
            table.by_id.insert(id.clone(), Arc::new(Container::new(id, name, record, log)));
        }
        Ok(())
    }

    /// After the sandboxes are back: forgets containers whose sandbox is gone, as an earlier daemon was killed between
    /// removing the two, and goes on with the output of the others.
    ///
    /// # Errors
    /// Where a record cannot be removed.
    pub fn restore(&self) -> Result<(), ContainerError> {
        for container in self.list() {
            match self.sandboxes.get(&container.sandbox_id()) {
                Err(_) => self.forget(&container.id)?,
                Ok(sandbox) => match sandbox.machine() {
                    Ok(machine) => self.resume(&container, &machine.vm),
                    Err(_) => self.lose(&container),
                },
            }
        }
        Ok(())
    }

    fn resume(&self, container: &Container, vm: &VmHandle) {
        if container.state() == State::Created {
            return;
        }
        if let Err(error) = self.carry_output(container, Arc::clone(vm)) {
            tracing::error!(container = container.id, %error, "output does not reach its log");
        }
    }
}

/// An end keeps the begin that was known before it.
fn with_start(record: &Record, next: State) -> State {
    match (&record.state, next) {
        (State::Running { started_at_ns }, State::Exited(exit)) if exit.started_at_ns == 0 => {
            State::Exited(Exit { started_at_ns: *started_at_ns, ..exit })
        }
        (_, next) => next,
    }
}
