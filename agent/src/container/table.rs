//! The table of containers, and what the agent knows of each: its processes, its namespaces, its directories.
//!
//! Every call on containers or their processes begins here. Only this file locks the table; none of its locks
//! is held while a call works.

use super::error::ContainerError;
use super::launch::LaunchError;
use super::namespaces::Namespaces;
use super::pid_namespace::PodPidNamespace;
use super::state::{ContainerStates, StateError};
use crate::cgroup::Cgroup;
use crate::id::Id;
use crate::lock::locked;
use crate::process::Process;
use crate::reaper::Reaper;
use isopod_protocols::guest::MAX_CONTAINERS;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tokio::sync::{Notify, OwnedMutexGuard, OwnedRwLockReadGuard, RwLock};

/// Below it the container library keeps one directory per container.
pub(super) const LIBRARY_DIRECTORIES: &str = "/run/isopod/containers";

/// Below it each container has its bundle: `config.json`.
const BUNDLES: &str = "/run/isopod/bundles";

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

/// A container's namespaces, which stay as long as this is held.
pub type NamespacesGuard = OwnedRwLockReadGuard<Option<Namespaces>>;

/// What one step leaves to the next.
#[derive(Debug, Default)]
pub struct Step {
    /// The pipe on which the first process says why it cannot execute its command; taken by start.
    pub status: Option<OwnedFd>,
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
    pub async fn namespaces(&self) -> NamespacesGuard {
        self.namespaces.clone().read_owned().await
    }

    /// Notes what its creation made: its first process, that one's user id, and the namespaces that execs
    /// enter.
    pub(super) async fn made(&self, process: Arc<Process>, uid: u32, namespaces: Namespaces) {
        *self.namespaces.write().await = Some(namespaces);
        if self.first.set((process, uid)).is_err() {
            unreachable!("a container is created once, under its step");
        }
    }

    /// Drops its namespaces, after the execs that are being made: each is among its execs by then, or has
    /// failed.
    pub(super) async fn drop_namespaces(&self) {
        drop(self.namespaces.write().await.take());
    }

    /// The right to change it. Waits for the step that another call holds.
    pub(super) async fn lock(&self) -> OwnedMutexGuard<Step> {
        self.step.clone().lock_owned().await
    }

    /// The user that its processes run as, by whom their pipes are owned.
    pub fn uid(&self) -> u32 {
        self.first.get().map_or(0, |(_, uid)| *uid)
    }

    /// The spec as the container library has it.
    pub fn config(&self) -> PathBuf {
        self.bundle().join("config.json")
    }

    /// The directory of what its processes are made from: spec, environment, seccomp filter.
    pub(super) fn bundle(&self) -> PathBuf {
        Path::new(BUNDLES).join(self.id.as_str())
    }

    /// The container library's own directory of it.
    pub(super) fn library_directory(&self) -> PathBuf {
        Path::new(LIBRARY_DIRECTORIES).join(self.id.as_str())
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<Id, Option<Arc<Process>>>> {
        locked(&self.execs)
    }

    /// Takes an exec's id, until [`Container::forget_exec`]. Returns false where it is taken.
    #[must_use]
    pub fn reserve_exec(&self, exec: &Id) -> bool {
        match self.execs().entry(exec.clone()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(None);
                true
            }
        }
    }

    /// Keeps an exec that was made under its reserved id.
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

    /// An error of the system, at one part of the container.
    pub(super) fn system(
        &self,
        what: &'static str,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> ContainerError + use<> {
        let id = self.id.clone();
        move |source| ContainerError::System { id, what, action, source }
    }

    /// An error of the one-shot child that was to make its process.
    pub(super) fn launch_failed(&self) -> impl FnOnce(LaunchError) -> ContainerError + use<> {
        let id = self.id.clone();
        move |source| ContainerError::Launch { id, source }
    }
}

/// The table of containers, and what they share. There is one, held by the sandbox; every call on containers
/// gets it.
#[derive(Debug, Default)]
pub struct Containers {
    /// Collects all processes of the guest.
    pub reaper: Reaper,
    /// The states of all containers.
    pub states: ContainerStates,
    table: Mutex<HashMap<Id, Arc<Container>>>,
    pub(super) pid_namespace: PodPidNamespace,
    appeared: Notify,
}

impl Containers {
    fn table(&self) -> MutexGuard<'_, HashMap<Id, Arc<Container>>> {
        locked(&self.table)
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

    /// Wakes those who wait for a process, after it was made.
    pub fn tell_appearance(&self) {
        self.appeared.notify_waiters();
    }

    /// Takes an id and its first step.
    pub(super) fn reserve(&self, id: &Id) -> Result<(Arc<Container>, OwnedMutexGuard<Step>), StateError> {
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
    pub(super) async fn step(&self, id: &Id) -> Result<(Arc<Container>, OwnedMutexGuard<Step>), StateError> {
        let container = self.container(id).ok_or_else(|| StateError::Unknown(id.clone()))?;
        let step = container.lock().await;
        // It may have gone while we waited.
        if container.first_process().is_none()
            || self.container(id).is_none_or(|now| !Arc::ptr_eq(&now, &container))
        {
            return Err(StateError::Unknown(id.clone()));
        }
        Ok((container, step))
    }

    /// Frees the id of a container of which nothing is left.
    pub(super) fn forget(&self, id: &Id) {
        self.table().remove(id);
        self.states.removed(id);
    }
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
