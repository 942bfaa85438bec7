//! What happens in guests, as their agents tell it, and what a starting daemon finds: both move containers' states.
//!
//! The task of [`Containers::follow`] is the only reader of sandboxes' events; it lives as long as the daemon.

use super::record::{Exit, Record, State};
use super::{Container, ContainerError, Containers, LogFile};
use crate::id::is_id;
use crate::sandbox::SandboxEvent;
use crate::wall_clock::now_ns;
use isopod_protocols::agent::{self, ContainerState, RemoveContainerRequest, event::Event};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Most containers without a record that are removed at once: a guest may name as many as it likes.
const MOST_STRANGERS: usize = 64;

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
    fn hear(self: &Arc<Self>, sandbox_id: &str, told: &ContainerState) {
        let Ok(container) = self.get(&told.container_id) else { return };
        if container.id != told.container_id || container.sandbox_id() != sandbox_id {
            return;
        }
        let state = match (told.state(), &told.exit) {
            (agent::State::Running, _) => State::Running { started_at_ns: told.started_at_ns },
            (agent::State::Exited, Some(exit)) => State::Exited(Exit::told(told.started_at_ns, exit)),
            _ => return,
        };
        if container.state() == State::Created {
            // An earlier daemon let it run and was killed before it noted that.
            self.resume_output(&container);
            if matches!(&state, State::Exited(exit) if exit.started_at_ns == 0) {
                tokio::spawn(Arc::clone(self).hear_failed_start(container));
                return;
            }
        }
        self.advance(&container, state);
    }

    /// A container has ended without having begun. Why is in the answer to its start, which goes first; none comes where an
    /// earlier daemon had asked.
    async fn hear_failed_start(self: Arc<Self>, container: Arc<Container>) {
        let _start = container.operation.lock().await;
        // One that was removed meanwhile ends that way too, and must not be recorded again.
        if self.get(&container.id).is_err() {
            return;
        }
        let message = "it ended before its command ran; the reason went to an earlier daemon".to_owned();
        self.advance(&container, State::Exited(Exit::never_started(now_ns(), message)));
    }

    /// A snapshot: it also tells of containers that it leaves out.
    fn compare(self: &Arc<Self>, sandbox_id: &str, all: &[ContainerState]) {
        all.iter().for_each(|told| self.hear(sandbox_id, told));
        let named: HashSet<_> = all.iter().map(|told| told.container_id.as_str()).collect();
        for container in self.of_sandbox(sandbox_id) {
            if container.is_running() && !named.contains(container.id.as_str()) {
                self.lose(&container);
            }
        }
        let strange = named.into_iter().filter(|id| is_id(id) && self.get(id).is_err());
        let strange = strange.take(MOST_STRANGERS).map(str::to_owned).collect();
        tokio::spawn(Arc::clone(self).remove_strangers(sandbox_id.to_owned(), strange));
    }

    /// Removes containers from their guest that have no record, and the layers that were mapped for them: an earlier daemon was
    /// killed while it made them.
    async fn remove_strangers(self: Arc<Self>, sandbox_id: String, ids: Vec<String>) {
        let Ok(sandbox) = self.sandboxes.get(&sandbox_id) else { return };
        let Ok(entered) = sandbox.enter().await else { return };
        // Under the pod's lock none is half made: it has a record by now, or never will.
        let _pod = self.pod_lock(&sandbox_id).await;
        for id in ids.into_iter().filter(|id| self.get(id).is_err()) {
            let request = RemoveContainerRequest { container_id: id.clone() };
            match entered.machine.agent.remove_container(request).await {
                Ok(_) => {
                    tracing::info!(sandbox = sandbox_id, container = id, "half-made container is removed")
                }
                Err(error) => {
                    tracing::warn!(sandbox = sandbox_id, container = id, %error, "half-made container stays");
                }
            }
        }
        self.detach_unused_layers(&sandbox_id, &entered.machine.vm).await;
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
        let exited = matches!(container.state(), State::Exited(_));
        if let (true, Ok(sandbox)) = (exited, self.sandboxes.get(&container.sandbox_id())) {
            self.place(&sandbox, None);
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
                Ok(sandbox) if sandbox.machine().is_err() => self.lose(&container),
                Ok(_) if container.state() == State::Created => {}
                Ok(sandbox) => {
                    // One may have ended, or been half made, while no daemon ran.
                    self.place(&sandbox, None);
                    self.resume_output(&container);
                    if let (true, Ok(machine)) = (container.is_running(), sandbox.machine()) {
                        // What fails here is tried again before the container's next exec.
                        tokio::spawn(async move { container.end_stale_execs(&machine).await });
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on with the output of a container that has been started.
    fn resume_output(&self, container: &Container) {
        let machine = self.sandboxes.get(&container.sandbox_id()).and_then(|sandbox| sandbox.machine());
        let carried = match machine {
            Ok(machine) => self.carry_output(container, machine.vm),
            // Its VM is gone, and what it said with it.
            Err(_) => return,
        };
        if let Err(error) = carried {
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
