//! The states of containers, and who is told of their changes.
//!
//! ```text
//!              begin_start            started              ended
//!  Created ----------------> Starting ---------> Running ---------> Exited
//!     |                        |   (ends that come meanwhile wait)     ^
//!     |                        | start_failed, then ended              |
//!     +------------------------+---------------------------------------+
//!                   ended: killed before it ran
//! ```
//!
//! Removal takes a container out of the table in any state. To the outside `Starting` is `STATE_CREATED`:
//! nothing of the container's own has run. All transitions happen under one lock and are sent under it, so a
//! watcher sees every change after its snapshot, in order and once.

use crate::id::Id;
use crate::lock::locked;
use isopod_protocols::agent::{self, ProcessExit, State};
use isopod_protocols::guest::MAX_CONTAINERS;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::broadcast;

/// Changes that a watcher may lag behind before it is cut off; it opens the stream again and gets a new
/// snapshot.
const WATCH_BACKLOG: usize = 256;

/// A transition that does not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// No container of that id.
    #[error("container {0} does not exist")]
    Unknown(Id),
    /// The id is taken.
    #[error("container {0} exists already: remove it or use another id")]
    Exists(Id),
    /// There are as many containers as there may be.
    #[error("container {0} would be one more than {MAX_CONTAINERS}: remove exited ones first")]
    TooMany(Id),
    /// Only a container that was created and never started can start.
    #[error("container {id} is {is} and cannot be started: only a created container can")]
    NotCreated {
        /// The container.
        id: Id,
        /// Its state.
        is: &'static str,
    },
    /// Only in a running container can something be done.
    #[error("container {id} is {is}, not running")]
    NotRunning {
        /// The container.
        id: Id,
        /// Its state.
        is: &'static str,
    },
}

/// One container's state.
#[derive(Debug, Clone, PartialEq)]
enum Lifecycle {
    Created,
    Starting { ended: Option<ProcessExit> },
    Running { started_at_ns: i64 },
    Exited { started_at_ns: i64, exit: ProcessExit },
}

impl Lifecycle {
    fn name(&self) -> &'static str {
        match self {
            Lifecycle::Created => "created",
            Lifecycle::Starting { .. } => "starting",
            Lifecycle::Running { .. } => "running",
            Lifecycle::Exited { .. } => "exited",
        }
    }

    fn message(&self, id: &Id) -> agent::ContainerState {
        let (state, started_at_ns, exit) = match self {
            Lifecycle::Created | Lifecycle::Starting { .. } => (State::Created, 0, None),
            Lifecycle::Running { started_at_ns } => (State::Running, *started_at_ns, None),
            Lifecycle::Exited { started_at_ns, exit } => (State::Exited, *started_at_ns, Some(*exit)),
        };
        agent::ContainerState {
            container_id: id.as_str().to_owned(),
            state: state.into(),
            started_at_ns,
            exit,
        }
    }
}

/// The states of all containers, and their watchers.
#[derive(Debug)]
pub struct ContainerStates {
    states: Mutex<HashMap<Id, Lifecycle>>,
    changes: broadcast::Sender<agent::ContainerState>,
}

impl Default for ContainerStates {
    fn default() -> ContainerStates {
        ContainerStates { states: Mutex::default(), changes: broadcast::Sender::new(WATCH_BACKLOG) }
    }
}

impl ContainerStates {
    fn states(&self) -> MutexGuard<'_, HashMap<Id, Lifecycle>> {
        locked(&self.states)
    }

    /// A container's process exists and waits.
    pub fn created(&self, id: &Id) -> Result<(), StateError> {
        let mut states = self.states();
        if states.contains_key(id) {
            return Err(StateError::Exists(id.clone()));
        }
        states.insert(id.clone(), Lifecycle::Created);
        self.tell(id, &Lifecycle::Created);
        Ok(())
    }

    /// The container is about to run. Until [`ContainerStates::started`] or [`ContainerStates::start_failed`]
    /// its end is held back.
    pub fn begin_start(&self, id: &Id) -> Result<(), StateError> {
        let mut states = self.states();
        let state = states.get_mut(id).ok_or_else(|| StateError::Unknown(id.clone()))?;
        if *state != Lifecycle::Created {
            return Err(StateError::NotCreated { id: id.clone(), is: state.name() });
        }
        *state = Lifecycle::Starting { ended: None };
        Ok(())
    }

    /// The container's own command runs, or ran and has ended meanwhile.
    pub fn started(&self, id: &Id, started_at_ns: i64) {
        let mut states = self.states();
        let Some(state) = states.get_mut(id) else { return };
        let Lifecycle::Starting { ended } = *state else { return };
        *state = Lifecycle::Running { started_at_ns };
        self.tell(id, state);
        if let Some(exit) = ended {
            *state = Lifecycle::Exited { started_at_ns, exit };
            self.tell(id, state);
        }
    }

    /// The container's command could not be executed; its process ends, or has.
    pub fn start_failed(&self, id: &Id) {
        let mut states = self.states();
        let Some(state) = states.get_mut(id) else { return };
        let Lifecycle::Starting { ended } = *state else { return };
        match ended {
            None => *state = Lifecycle::Created,
            Some(exit) => {
                *state = Lifecycle::Exited { started_at_ns: 0, exit };
                self.tell(id, state);
            }
        }
    }

    /// The container's process has ended.
    pub fn ended(&self, id: &Id, exit: ProcessExit) {
        let mut states = self.states();
        let Some(state) = states.get_mut(id) else { return };
        let started_at_ns = match state {
            Lifecycle::Created => 0,
            Lifecycle::Running { started_at_ns } => *started_at_ns,
            Lifecycle::Starting { ended } => {
                *ended = Some(exit);
                return;
            }
            Lifecycle::Exited { .. } => return,
        };
        *state = Lifecycle::Exited { started_at_ns, exit };
        self.tell(id, state);
    }

    /// The container is gone. Unknown ids succeed.
    pub fn removed(&self, id: &Id) {
        self.states().remove(id);
    }

    /// Refuses what only a running container can do.
    pub fn require_running(&self, id: &Id) -> Result<(), StateError> {
        match self.states().get(id) {
            None => Err(StateError::Unknown(id.clone())),
            Some(Lifecycle::Running { .. }) => Ok(()),
            Some(state) => Err(StateError::NotRunning { id: id.clone(), is: state.name() }),
        }
    }

    /// Ids of the containers that run now.
    pub fn running(&self) -> Vec<Id> {
        let states = self.states();
        states
            .iter()
            .filter(|(_, s)| matches!(s, Lifecycle::Running { .. }))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// The state of every container, and each change after it.
    pub fn watch(&self) -> (agent::Snapshot, broadcast::Receiver<agent::ContainerState>) {
        let states = self.states();
        let mut containers: Vec<_> = states.iter().map(|(id, state)| state.message(id)).collect();
        containers.sort_by(|a, b| a.container_id.cmp(&b.container_id));
        (agent::Snapshot { containers }, self.changes.subscribe())
    }

    /// Sends a change. Called under the lock; never blocks: a watcher that lags is cut off.
    fn tell(&self, id: &Id, state: &Lifecycle) {
        let _ = self.changes.send(state.message(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: ProcessExit = ProcessExit { code: 3, exited_at_ns: 9, oom_killed: false };

    fn id() -> Id {
        Id::parse("id", "c1").unwrap()
    }

    fn one() -> ContainerStates {
        let states = ContainerStates::default();
        states.created(&id()).unwrap();
        states
    }

    fn told(changes: &mut broadcast::Receiver<agent::ContainerState>) -> Vec<State> {
        std::iter::from_fn(|| changes.try_recv().ok()).map(|change| change.state()).collect()
    }

    #[test]
    fn life_is_told_in_order() {
        let states = ContainerStates::default();
        let (snapshot, mut changes) = states.watch();
        assert!(snapshot.containers.is_empty());
        states.created(&id()).unwrap();
        states.begin_start(&id()).unwrap();
        states.started(&id(), 5);
        states.ended(&id(), EXIT);
        assert_eq!(told(&mut changes), [State::Created, State::Running, State::Exited]);
        let (snapshot, _) = states.watch();
        assert_eq!((snapshot.containers[0].started_at_ns, snapshot.containers[0].exit), (5, Some(EXIT)));
    }

    #[test]
    fn end_during_start_is_told_after_running() {
        let states = one();
        let (_, mut changes) = states.watch();
        states.begin_start(&id()).unwrap();
        states.ended(&id(), EXIT);
        assert_eq!(told(&mut changes), []);
        states.started(&id(), 5);
        assert_eq!(told(&mut changes), [State::Running, State::Exited]);
    }

    #[test]
    fn failed_start_never_shows_as_running() {
        let states = one();
        let (_, mut changes) = states.watch();
        states.begin_start(&id()).unwrap();
        states.start_failed(&id());
        states.ended(&id(), EXIT);
        assert_eq!(told(&mut changes), [State::Exited]);
        assert_eq!(states.watch().0.containers[0].started_at_ns, 0);
    }

    #[test]
    fn start_twice_is_refused() {
        let states = one();
        states.begin_start(&id()).unwrap();
        states.started(&id(), 5);
        assert_eq!(states.begin_start(&id()), Err(StateError::NotCreated { id: id(), is: "running" }));
        states.ended(&id(), EXIT);
        assert_eq!(states.begin_start(&id()), Err(StateError::NotCreated { id: id(), is: "exited" }));
    }

    #[test]
    fn create_twice_is_refused() {
        assert_eq!(one().created(&id()), Err(StateError::Exists(id())));
    }

    #[test]
    fn second_end_changes_nothing() {
        let states = one();
        states.ended(&id(), EXIT);
        states.ended(&id(), ProcessExit { code: 4, ..EXIT });
        assert_eq!(states.watch().0.containers[0].exit, Some(EXIT));
    }

    #[test]
    fn only_running_containers_are_listed_as_running() {
        let states = one();
        assert!(states.require_running(&id()).is_err() && states.running().is_empty());
        states.begin_start(&id()).unwrap();
        states.started(&id(), 5);
        assert_eq!((states.require_running(&id()), states.running()), (Ok(()), vec![id()]));
    }

    #[test]
    fn removed_container_is_unknown_to_all() {
        let states = one();
        states.removed(&id());
        states.removed(&id());
        states.ended(&id(), EXIT);
        assert_eq!(states.begin_start(&id()), Err(StateError::Unknown(id())));
        assert!(states.watch().0.containers.is_empty());
    }

    #[test]
    fn slow_watcher_is_cut_off_and_holds_nothing_up() {
        let states = one();
        let (_, mut slow) = states.watch();
        for _ in 0..WATCH_BACKLOG + 1 {
            states.removed(&id());
            states.created(&id()).unwrap();
        }
        assert!(matches!(slow.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
    }
}
