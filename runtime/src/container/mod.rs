//! Containers: processes with a root of their own in a sandbox's guest; their states, their records on disk, and the table
//! of all of them.
//!
//! Called by `cri` and `pod`. How they hang on sandboxes is told in [`crate::sandbox`]. What a container is
//! made of comes as a [`ContainerSpec`], whatever API it was asked for by.
//!
//! # States
//!
//! ```text
//!   create -> Created -> Running -> Exited -> (removed)
//!                |          |          ^
//!                |          +----------+   its process ended, was killed, or the VM did
//!                +---------------------+   it could not be started, or the VM ended
//! ```
//!
//! A state only ever goes to the right. Several may tell of one change, in any order: the answer of StartContainer, the
//! agent's events, the end of the VM. The first that fits counts.

mod create;
mod error;
mod events;
mod exec;
mod exec_room;
mod follow;
mod layers;
mod log;
mod log_file;
mod log_writer;
mod output;
mod record;
mod record_v1;
mod remove;
mod request;
mod resources;
mod spec;
mod start;
mod stats;
mod stdio;
mod stop;
pub mod stop_signal;
mod update;
mod volumes;
mod weight;

pub use error::ContainerError;
pub use exec::{MAX_OUTPUT, Outcome};
#[cfg(any(test, feature = "testing"))]
pub use log::{Lines, MAX_LINE};
pub use log_file::{LogError, LogPath};
#[cfg(any(test, feature = "testing"))]
pub use record::User;
pub use record::{Exit, Reason, Record, State};
pub use request::request;
pub use resources::LimitError;
pub use spec::{
    AskedMount, ContainerSpec, Description, ImageNames, PidNamespace, Propagation, RootSource, Stdio,
    StdioSink,
};
pub use stdio::StdioError;

use crate::cpu_rate::CpuRate;
use crate::id::{Mismatch, resolve};
use crate::lock::lock;
use crate::private;
use crate::resources::Resources;
use crate::sandbox::{Machine, Sandbox, SandboxEvents, Sandboxes};
use crate::store::{Collection, Durability};
use exec::Unended;
use exec_room::Room;
use log_file::LogFile;
use log_writer::PodSeats;
use output::Carried;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OnceCell, OwnedMutexGuard, mpsc, watch};
use weight::Weight;

/// A container.
pub struct Container {
    /// Its id, unique on the node.
    pub id: String,
    name: String,
    record: Mutex<Record>,
    /// Its record is not on disk any more, and is not to be written again. Changed and read under the
    /// record's lock.
    forgotten: AtomicBool,
    log: Option<Arc<LogFile>>,
    /// Its state, for those who wait for a change. Sent under the record's lock, so that the last that is
    /// sent is the last.
    states: watch::Sender<State>,
    /// Held by start and remove: neither happens during the other.
    operation: tokio::sync::Mutex<()>,
    /// Its stop signal was sent.
    asked_to_stop: AtomicBool,
    /// Its streams that are carried to the log; `None` from its removal, or its pod's stop, on: no stream
    /// begins then.
    output: Mutex<Option<Vec<Carried>>>,
    /// Filled when no exec of an earlier daemon is left.
    stale_execs: OnceCell<()>,
    /// Its execs that the agent is still asked to end.
    unended: Arc<Unended>,
    /// Its use of CPUs, see ContainerStats.
    pub cpu_rate: CpuRate,
}

impl Container {
    fn new(id: String, name: String, record: Record, log: Option<Arc<LogFile>>) -> Self {
        Self {
            id,
            name,
            states: watch::Sender::new(record.state.clone()),
            record: Mutex::new(record),
            forgotten: AtomicBool::new(false),
            log,
            operation: tokio::sync::Mutex::default(),
            asked_to_stop: AtomicBool::new(false),
            output: Mutex::new(Some(Vec::new())),
            stale_execs: OnceCell::new(),
            unended: Arc::default(),
            cpu_rate: CpuRate::default(),
        }
    }

    /// All that is known of it, as it is now.
    pub fn snapshot(&self) -> Record {
        self.record().clone()
    }

    /// What is only kept of it, for those who ask.
    pub fn description(&self) -> Description {
        self.record().description.clone()
    }

    /// Its sandbox's id.
    pub fn sandbox_id(&self) -> String {
        self.record().sandbox_id.clone()
    }

    /// Its state now.
    pub fn state(&self) -> State {
        self.record().state.clone()
    }

    /// Whether its first process runs.
    pub fn is_running(&self) -> bool {
        matches!(self.record().state, State::Running { .. })
    }

    /// Opens its log anew.
    ///
    /// # Errors
    /// Where it does not run, has no log, or the new file cannot be made; then the old one goes on being written.
    pub async fn reopen_log(&self) -> Result<(), ContainerError> {
        if !self.is_running() {
            return Err(ContainerError::WrongState {
                id: self.id.clone(),
                wanted: "running",
                state: self.state(),
            });
        }
        let log = self.log.as_ref().ok_or_else(|| ContainerError::NoLog(self.id.clone()))?;
        Ok(log.reopen().await?)
    }

    fn expect_created(&self) -> Result<(), ContainerError> {
        match self.state() {
            State::Created => Ok(()),
            state => Err(ContainerError::WrongState { id: self.id.clone(), wanted: "created", state }),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    fn output(&self) -> MutexGuard<'_, Option<Vec<Carried>>> {
        lock(&self.output)
    }

    /// Lets no stream begin any more, and waits until those that are carried are in its log; past `limit`
    /// only what has come by then is written. Goes on where its caller leaves, so that no stream is left
    /// without anybody who ends it.
    async fn close_output(&self, limit: Duration) {
        let Some(tasks) = self.output().take() else { return };
        let id = self.id.clone();
        let closed = tokio::spawn(async move {
            for task in tasks {
                if !task.finish(limit).await {
                    let seconds = limit.as_secs();
                    tracing::warn!(
                        container = id,
                        seconds,
                        "output did not end in time: its rest is not in the log"
                    );
                }
            }
        });
        // It fails only where the daemon goes down: then the next one goes on with the streams.
        let _ = closed.await;
    }
}

/// All containers of the node.
pub struct Containers {
    sandboxes: Arc<Sandboxes>,
    records: Collection<Record>,
    /// Directory of streams' positions.
    streams: PathBuf,
    table: Mutex<Table>,
    /// Held while a pod's VM is placed on the node.
    placing: Mutex<()>,
    exec_room: Arc<Room>,
}

#[derive(Default)]
struct Table {
    by_id: BTreeMap<String, Arc<Container>>,
    /// By name, from before a container is made until it is removed.
    names: HashMap<String, Named>,
    /// By sandbox, from its first container until it is removed.
    pods: HashMap<String, Shared>,
}

/// Who has a name.
struct Named {
    id: String,
    sandbox_id: String,
    weight: Weight,
}

/// What the containers of one pod share.
struct Shared {
    /// Held while its disk's layers change.
    layers: Arc<tokio::sync::Mutex<()>>,
    seats: PodSeats,
    exec_room: Arc<Room>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { layers: Arc::default(), seats: PodSeats::default(), exec_room: Room::of_pod() }
    }
}

impl Containers {
    /// The table as an earlier daemon left it in `directory`. `events` are those of each sandbox, from now
    /// on.
    ///
    /// # Errors
    /// Where the directory cannot be used.
    pub fn open(
        directory: &Path,
        sandboxes: Arc<Sandboxes>,
        events: mpsc::UnboundedReceiver<SandboxEvents>,
    ) -> Result<Arc<Self>, ContainerError> {
        let records = Collection::open(directory.join("containers"), Durability::Process)?;
        let streams = directory.join("streams");
        private::directory(&streams).map_err(|source| ContainerError::File {
            what: "directory of stream positions",
            path: streams.clone(),
            source,
        })?;
        let containers = Arc::new(Self {
            sandboxes,
            records,
            streams,
            table: Mutex::default(),
            placing: Mutex::default(),
            exec_room: Room::of_node(),
        });
        containers.load()?;
        tokio::spawn(Arc::clone(&containers).follow_all(events));
        Ok(containers)
    }

    /// The container of that id, or of the only id that begins so.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`], [`ContainerError::Ambiguous`].
    pub fn get(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        let table = self.table();
        match resolve(id, table.by_id.keys().map(String::as_str)) {
            Ok(found) => Ok(Arc::clone(&table.by_id[found])),
            Err(Mismatch::None) => Err(ContainerError::NotFound(id.to_owned())),
            Err(Mismatch::Ambiguous) => Err(ContainerError::Ambiguous(id.to_owned())),
        }
    }

    /// The container of exactly that id.
    fn exact(&self, id: &str) -> Option<Arc<Container>> {
        self.table().by_id.get(id).cloned()
    }

    /// All containers, sorted by id.
    pub fn list(&self) -> Vec<Arc<Container>> {
        self.table().by_id.values().cloned().collect()
    }

    /// The containers of a sandbox.
    pub fn of_sandbox(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        self.table().by_id.values().filter(|c| c.record().sandbox_id == sandbox_id).cloned().collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    async fn pod_lock(&self, sandbox_id: &str) -> OwnedMutexGuard<()> {
        let lock = Arc::clone(&self.table().pods.entry(sandbox_id.to_owned()).or_default().layers);
        lock.lock_owned().await
    }

    fn log_seats(&self, sandbox_id: &str) -> PodSeats {
        self.table().pods.entry(sandbox_id.to_owned()).or_default().seats.clone()
    }

    fn exec_rooms(&self, sandbox_id: &str) -> (Arc<Room>, Arc<Room>) {
        let pod = Arc::clone(&self.table().pods.entry(sandbox_id.to_owned()).or_default().exec_room);
        (pod, Arc::clone(&self.exec_room))
    }

    fn reserve(&self, name: &str, named: Named) -> Result<(), ContainerError> {
        let mut table = self.table();
        if let Some(Named { id, .. }) = table.names.get(name) {
            return Err(ContainerError::NameTaken { name: name.to_owned(), id: id.clone() });
        }
        if table.names.values().any(|other| other.id == named.id) {
            return Err(ContainerError::BadId(named.id));
        }
        let there = table.names.values().map(|other| (other.sandbox_id.as_str(), other.weight));
        weight::refuse_more(there, &named.sandbox_id, named.weight)?;
        table.names.insert(name.to_owned(), named);
        Ok(())
    }

    fn release(&self, name: &str) {
        self.table().names.remove(name);
    }

    fn insert(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        self.records.put(&container.id, &container.snapshot())?;
        self.table().by_id.insert(container.id.clone(), Arc::clone(container));
        Ok(())
    }

    /// Whoever has the container still and changes it writes no record any more.
    fn forget(&self, container: &Container) -> Result<(), ContainerError> {
        {
            let _record = container.record();
            self.records.remove(&container.id)?;
            container.forgotten.store(true, Ordering::Relaxed);
        }
        let mut table = self.table();
        if table.by_id.remove(&container.id).is_some() {
            table.names.remove(&container.name);
        }
        Ok(())
    }

    /// Has the pod's VM hold the limits of its containers together, where the one of that id has `limits`. One that has no
    /// limit takes what there is.
    async fn make_room(
        &self,
        sandbox: &Sandbox,
        machine: &Machine,
        id: &str,
        limits: &Resources,
    ) -> Result<(), ContainerError> {
        let others = self.of_sandbox(&sandbox.id);
        let others =
            others.iter().filter(|other| other.id != id && !matches!(other.state(), State::Exited(_)));
        let all: Vec<_> = others.map(|other| other.record().resources.clone()).collect();
        let together = resources::together(all.iter().chain([limits]));
        self.sandboxes.make_room(sandbox, machine, &together).await?;
        self.place(sandbox, Some((id, limits)));
        Ok(())
    }

    /// Has the pod's VM run on the CPUs and memory nodes of its containers that have not ended, and with
    /// their OOM score, where the one of that id has these limits. Called whenever one of them changes.
    fn place(&self, sandbox: &Sandbox, changed: Option<(&str, &Resources)>) {
        let _one_at_a_time = lock(&self.placing);
        let others = self.of_sandbox(&sandbox.id).into_iter().filter(|other| {
            changed.is_none_or(|(id, _)| other.id != id) && !matches!(other.state(), State::Exited(_))
        });
        let all: Vec<_> = others.map(|other| other.record().resources.clone()).collect();
        let all = || all.iter().chain(changed.map(|(_, limits)| limits));
        let (cpus, mems) = resources::place(all());
        sandbox.cgroup.place(cpus, mems);
        sandbox.cgroup.set_oom_score(resources::oom_score(all()));
    }

    fn save_resources(&self, container: &Container, resources: Resources) -> Result<(), ContainerError> {
        let mut record = container.record();
        if container.forgotten.load(Ordering::Relaxed) {
            return Err(ContainerError::NotFound(container.id.clone()));
        }
        record.resources = resources;
        Ok(self.records.put(&container.id, &record)?)
    }
}
