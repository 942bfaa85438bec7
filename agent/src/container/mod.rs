//! Containers: made, started, limited and removed; and the stream of their states.
//!
//! | module | |
//! |---|---|
//! | [`state`] | the states of all containers, with their diagram, and who watches them |
//! | `create`, `start`, `update`, `remove` | one call each |
//! | [`spec`] | the runtime's OCI spec, completed and checked; pure |
//! | [`targets`] | places of mounts and working directory in the root |
//! | [`pid_namespace`] | the pid namespace that containers of the pod may share |
//! | [`namespaces`] | the namespaces of a container, which its execs enter |
//! | [`launch`] | starts the one-shot child and takes over what it makes |
//!
//! Create, start, update and remove of one container never overlap: each holds [`Container::step`]. Calls run to their end
//! even when the caller has gone away, so nothing is left half done.

mod create;
pub mod launch;
pub mod namespaces;
mod pid_namespace;
mod remove;
pub mod spec;
mod start;
pub mod state;
mod targets;
mod update;

pub use create::create;
pub use remove::remove;
pub use start::start;
pub use update::update;

use crate::cgroup::{Cgroup, CgroupError};
use crate::error::AgentError;
use crate::id::Id;
use crate::lock::locked;
use crate::process::{Process, ProcessError};
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use futures_util::Stream;
use isopod_protocols::agent::{ContainerState, Event, event};
use isopod_protocols::guest::MAX_CONTAINERS;
use launch::LaunchError;
use namespaces::Namespaces;
use pid_namespace::PodPidNamespace;
use spec::SpecError;
use state::{Board, StateError};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use targets::TargetError;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, OwnedMutexGuard, OwnedRwLockReadGuard, RwLock, broadcast};
use tonic::Status;

/// Below it the container library keeps one directory per container.
const STATES: &str = "/run/isopod/containers";

/// Below it each container has its bundle: `config.json`.
const BUNDLES: &str = "/run/isopod/bundles";

/// Why a container call failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The container is not in a state for this, or not there.
    #[error(transparent)]
    State(#[from] StateError),
    /// The spec cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The image and the spec do not fit: a mount or the working directory has no place.
    #[error("container {id}")]
    Target {
        /// The container.
        id: Id,
        /// Why.
        source: TargetError,
    },
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its process could not be made, or could not execute its command.
    #[error("container {id}")]
    Launch {
        /// The container.
        id: Id,
        /// Why.
        source: LaunchError,
    },
    /// The container whose pid namespace is to be joined is not there or has no process.
    #[error("container {id} cannot join the pid namespace of {target:?}: no process lives there")]
    PidTarget {
        /// The container.
        id: Id,
        /// The container named as target.
        target: String,
    },
    /// A file of the container, its streams or its namespaces.
    #[error("{what} of container {id} cannot be {action}")]
    System {
        /// The container.
        id: Id,
        /// Which part.
        what: &'static str,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A killed process that does not go.
    #[error("container {0} still has a process that was killed and does not end")]
    Immortal(Id),
}

/// A container that exists, or is being made.
#[derive(Debug)]
pub struct Container {
    id: Id,
    /// Held by whoever creates, starts, updates or removes it.
    step: Arc<tokio::sync::Mutex<Step>>,
    /// Its first process, from the end of its creation on, and that process's user id.
    first: OnceLock<(Arc<Process>, u32)>,
    /// From the end of its creation to the beginning of its removal; read by each exec while it is made.
    namespaces: Arc<RwLock<Option<Namespaces>>>,
    /// Its execs; reserved and not yet made are absent.
    execs: Mutex<HashMap<Id, Option<Arc<Process>>>>,
}

/// What one step leaves to the next.
#[derive(Debug, Default)]
struct Step {
    /// The pipe on which the first process says why it cannot execute its command; taken by start.
    status: Option<OwnedFd>,
}

impl Container {
    fn new(id: Id) -> Container {
        Container {
            id,
            step: Arc::default(),
            first: OnceLock::new(),
            namespaces: Arc::default(),
            execs: Mutex::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::of_container(&self.id)
    }

    /// Its first process; none before it has been created.
    pub fn first_process(&self) -> Option<&Arc<Process>> {
        self.first.get().map(|(process, _)| process)
    }

    /// The namespaces that its execs enter; none once it is being removed. A removal waits for the guard.
    pub async fn namespaces(&self) -> OwnedRwLockReadGuard<Option<Namespaces>> {
        self.namespaces.clone().read_owned().await
    }

    /// The user that its processes run as, by whom their pipes are owned.
    pub fn uid(&self) -> u32 {
        self.first.get().map_or(0, |(_, uid)| *uid)
    }

    /// The spec as the container library has it.
    pub fn config(&self) -> PathBuf {
        self.bundle().join("config.json")
    }

    fn bundle(&self) -> PathBuf {
        Path::new(BUNDLES).join(self.id.as_str())
    }

    fn state(&self) -> PathBuf {
        Path::new(STATES).join(self.id.as_str())
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<Id, Option<Arc<Process>>>> {
        locked(&self.execs)
    }

    /// Takes an exec's id, until [`Container::forget_exec`].
    pub fn reserve_exec(&self, exec: &Id) -> Result<(), ProcessError> {
        let mut execs = self.execs();
        if execs.contains_key(exec) {
            return Err(ProcessError::Exists { container: self.id.clone(), process: exec.clone() });
        }
        execs.insert(exec.clone(), None);
        Ok(())
    }

    /// Makes an exec known.
    pub fn add_exec(&self, exec: &Id, process: Arc<Process>) {
        self.execs().insert(exec.clone(), Some(process));
    }

    /// An exec that was made.
    pub fn exec(&self, exec: &Id) -> Option<Arc<Process>> {
        self.execs().get(exec).cloned().flatten()
    }

    /// Every exec that was made and not yet removed.
    pub fn all_execs(&self) -> Vec<(Id, Arc<Process>)> {
        let execs = self.execs();
        execs.iter().filter_map(|(id, process)| Some((id.clone(), process.clone()?))).collect()
    }

    /// Frees an exec's id.
    pub fn forget_exec(&self, exec: &Id) {
        self.execs().remove(exec);
    }

    fn system(
        &self,
        what: &'static str,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> ContainerError + use<> {
        let id = self.id.clone();
        move |source| ContainerError::System { id, what, action, source }
    }

    fn launch_failed(&self) -> impl FnOnce(LaunchError) -> ContainerError + use<> {
        let id = self.id.clone();
        move |source| ContainerError::Launch { id, source }
    }
}

/// The table of containers, and what they share.
#[derive(Debug, Default)]
pub struct Containers {
    /// Collects all processes.
    pub reaper: Reaper,
    /// The states of all containers.
    pub board: Board,
    table: Mutex<HashMap<Id, Arc<Container>>>,
    pid_namespace: PodPidNamespace,
    appeared: Notify,
}

impl Containers {
    fn table(&self) -> MutexGuard<'_, HashMap<Id, Arc<Container>>> {
        locked(&self.table)
    }

    /// Ids of the containers that run now.
    pub fn running(&self) -> Vec<Id> {
        self.board.running()
    }

    /// A container that exists or is being made.
    pub fn container(&self, id: &Id) -> Option<Arc<Container>> {
        self.table().get(id).cloned()
    }

    /// A process that was made: an exec, or the container's first one.
    pub fn process(&self, container: &Id, exec: Option<&Id>) -> Option<Arc<Process>> {
        let container = self.container(container)?;
        match exec {
            Some(exec) => container.exec(exec),
            None => container.first_process().cloned(),
        }
    }

    /// Waits until a process has been made; for ever if it never is.
    pub async fn appearance(&self, container: &Id, exec: Option<&Id>) -> Arc<Process> {
        loop {
            let appeared = self.appeared.notified();
            tokio::pin!(appeared);
            // Before the look, so that what is made after the look is not missed.
            appeared.as_mut().enable();
            if let Some(process) = self.process(container, exec) {
                return process;
            }
            appeared.await;
        }
    }

    /// A process has been made known.
    pub fn tell_appearance(&self) {
        self.appeared.notify_waiters();
    }

    /// Takes an id and its first step.
    fn reserve(&self, id: &Id) -> Result<(Arc<Container>, OwnedMutexGuard<Step>), StateError> {
        let mut table = self.table();
        if table.contains_key(id) {
            return Err(StateError::Exists(id.clone()));
        }
        if table.len() >= MAX_CONTAINERS {
            return Err(StateError::TooMany(id.clone()));
        }
        let container = Arc::new(Container::new(id.clone()));
        let step = container.step.clone().try_lock_owned().expect("nobody else knows this container yet");
        table.insert(id.clone(), container.clone());
        Ok((container, step))
    }

    /// A container that was created, and the right to change it. Waits for the step that another call holds.
    async fn step(&self, id: &Id) -> Result<(Arc<Container>, OwnedMutexGuard<Step>), StateError> {
        let container = self.container(id).ok_or_else(|| StateError::Unknown(id.clone()))?;
        let step = container.step.clone().lock_owned().await;
        // It may have gone while we waited.
        if container.first_process().is_none()
            || self.container(id).is_none_or(|now| !Arc::ptr_eq(&now, &container))
        {
            return Err(StateError::Unknown(id.clone()));
        }
        Ok((container, step))
    }

    fn forget(&self, id: &Id) {
        self.table().remove(id);
        self.board.removed(id);
    }
}

/// What `Watch` answers with.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

/// Answers `Watch`: the state of every container, then each change.
pub fn watch(sandbox: &Arc<Sandbox>) -> Result<EventStream, AgentError> {
    let (snapshot, changes) = sandbox.containers.board.watch();
    let first = Event { event: Some(event::Event::Snapshot(snapshot)) };
    let stream = futures_util::stream::unfold(Some((Some(first), changes)), |state| async {
        let (first, mut changes) = state?;
        if let Some(first) = first {
            return Some((Ok(first), Some((None, changes))));
        }
        match next(&mut changes).await {
            Ok(change) => {
                let event = Event { event: Some(event::Event::Changed(change)) };
                Some((Ok(event), Some((None, changes))))
            }
            Err(cut) => Some((Err(cut), None)),
        }
    });
    Ok(Box::pin(stream))
}

async fn next(changes: &mut broadcast::Receiver<ContainerState>) -> Result<ContainerState, Status> {
    changes.recv().await.map_err(|error| match error {
        RecvError::Lagged(missed) => Status::resource_exhausted(format!(
            "watcher fell behind by {missed} changes and was cut off: open the stream again"
        )),
        RecvError::Closed => Status::unavailable("the agent is ending"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> Id {
        Id::parse("container_id", &format!("c{number}")).unwrap()
    }

    #[test]
    fn container_beyond_the_limit_is_refused_until_another_goes() {
        let containers = Containers::default();
        for number in 0..MAX_CONTAINERS {
            containers.reserve(&id(number)).unwrap();
        }
        let one_more = id(MAX_CONTAINERS);
        assert_eq!(containers.reserve(&one_more).unwrap_err(), StateError::TooMany(one_more.clone()));
        containers.forget(&id(0));
        containers.reserve(&one_more).unwrap();
    }
}
