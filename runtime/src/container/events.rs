//! How containers' states move, whoever tells of it, and what a starting daemon finds.
//!
//! Used by all that moves a state: `start`, `follow`, and the daemon's start.

use super::create::name_of;
use super::log_file::LogFile;
use super::record::{Exit, Record, State};
use super::weight::Weight;
use super::{Container, ContainerError, Containers, Named};
use crate::wall_clock::now_ns;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Containers {
    /// The VM is gone, and all containers with it.
    pub(super) fn lose_all(&self, sandbox_id: &str) {
        self.of_sandbox(sandbox_id).iter().for_each(|container| self.lose(container));
    }

    pub(super) fn lose(&self, container: &Container) {
        let started_at_ns = match container.state() {
            State::Running { started_at_ns } => started_at_ns,
            _ => 0,
        };
        self.advance(container, State::Exited(Exit::lost(started_at_ns, now_ns())));
    }

    /// Moves a container on; a state that it has passed already changes nothing, and nor does one of a
    /// container that is forgotten: its record would be there again.
    pub(super) fn advance(&self, container: &Container, next: State) {
        let exited = {
            let mut record = container.record();
            let moves = match record.state {
                State::Created => next != State::Created,
                State::Running { .. } => matches!(next, State::Exited(_)),
                State::Exited(_) => false,
            };
            if !moves || container.forgotten.load(Ordering::Relaxed) {
                return;
            }
            let next = with_start(&record, next);
            tracing::info!(sandbox = record.sandbox_id, container = container.id, state = %next, "container");
            record.state = next;
            if let Err(error) = self.records.put(&container.id, &record) {
                tracing::error!(container = container.id, %error, "new state is not on disk");
            }
            container.states.send_replace(record.state.clone());
            matches!(record.state, State::Exited(_))
        };
        if let (true, Ok(sandbox)) = (exited, self.sandboxes.get(&container.sandbox_id())) {
            self.place(&sandbox, None);
        }
    }

    /// Takes over what an earlier daemon recorded.
    pub(super) fn load(self: &Arc<Self>) -> Result<(), ContainerError> {
        let loaded = self.records.load()?;
        for path in &loaded.corrupt {
            tracing::error!(
                path = %path.display(),
                "container is not taken back: its record cannot be read; its guest removes it"
            );
        }
        for (id, record) in loaded.documents {
            let name = name_of(&record.sandbox_id, &record.description);
            let log = open_log(&id, &record);
            let (sandbox_id, weight) = (record.sandbox_id.clone(), Weight::of(&record.description));
            let mut table = self.table();
            table.names.insert(name.clone(), Named { id: id.clone(), sandbox_id, weight });
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
                Err(_) => self.forget(&container)?,
                Ok(sandbox) if sandbox.machine().is_err() => self.lose(&container),
                Ok(_) if container.state() == State::Created => {}
                Ok(sandbox) => {
                    self.resume_output(&container);
                    if let (true, Ok(machine)) = (container.is_running(), sandbox.machine()) {
                        // What fails here is tried again before the container's next exec.
                        tokio::spawn(async move { container.end_stale_execs(&machine).await });
                    }
                }
            }
        }
        // One may have ended, or been half made, while no daemon ran; and a VM without containers has its OOM
        // score too.
        for sandbox in self.sandboxes.list().iter().filter(|sandbox| sandbox.machine().is_ok()) {
            self.place(sandbox, None);
        }
        Ok(())
    }

    /// Goes on with the output of a container that has been started.
    pub(super) fn resume_output(&self, container: &Container) {
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

/// The log of a container that an earlier daemon made. Without one its output is dropped, so that it runs on.
fn open_log(id: &str, record: &Record) -> Option<Arc<LogFile>> {
    match LogFile::open(record.stdio.log_path()?.clone()) {
        Ok(log) => Some(Arc::new(log)),
        Err(error) => {
            tracing::error!(container = id, %error, "output is dropped");
            None
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

#[cfg(test)]
mod tests {
    use super::super::record::User;
    use super::super::spec::{Description, Stdio};
    use super::super::stop_signal;
    use super::*;
    use crate::resources::Resources;
    use crate::sandbox::fake;
    use std::fs;
    use std::path::Path;

    /// Those of a node without pods.
    fn containers(directory: &Path) -> Arc<Containers> {
        let (sandboxes, events) = fake::without_pods(directory);
        Containers::open(directory, sandboxes, events).unwrap()
    }

    fn created() -> Record {
        Record {
            version: Record::VERSION,
            sandbox_id: "gone".into(),
            description: Description::default(),
            created_at_ns: 1,
            stdio: Stdio::default(),
            layers: Vec::new(),
            user: User::default(),
            stop_signal: stop_signal::DEFAULT,
            resources: Resources::default(),
            state: State::Created,
        }
    }

    #[tokio::test]
    async fn state_told_after_a_removal_leaves_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let containers = containers(directory.path());
        let container = Arc::new(Container::new("c".into(), "name".into(), created(), None));
        containers.insert(&container).unwrap();
        let records = directory.path().join("containers");
        assert_eq!(fs::read_dir(&records).unwrap().count(), 1);
        containers.forget(&container).unwrap();
        // As by whoever had looked it up before.
        containers.advance(&container, State::Running { started_at_ns: 2 });
        containers.lose(&container);
        assert!(containers.save_resources(&container, Resources::default()).is_err());
        assert_eq!(fs::read_dir(&records).unwrap().count(), 0);
        assert_eq!(container.state(), State::Created);
    }
}
