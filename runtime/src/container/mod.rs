//! Containers: processes with a root of their own in a sandbox's guest; their states, their records on disk, and the table
//! of all of them.
//!
//! Called by `cri`. How they hang on sandboxes is told in [`crate::sandbox`].
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
mod environment;
mod events;
mod exec;
mod follow;
mod guest_devices;
mod layers;
mod log;
mod log_file;
mod log_writer;
mod output;
mod record;
mod remove;
mod resources;
mod seccomp;
mod seccomp_profile;
mod security;
mod spec;
mod start;
mod stats;
mod stdio;
mod stop;
pub mod stop_signal;
mod update;
mod volumes;

pub use crate::image::ImageConfiguration;
pub use create::Wish;
pub use exec::{MAX_OUTPUT, Outcome};
#[cfg(any(test, feature = "testing"))]
pub use log::{Lines, MAX_LINE};
pub use log_file::LogError;
pub use record::{Exit, Reason, Record, State};
pub use spec::{Parts, SpecError, build as build_spec};
pub use stdio::StdioError;

use crate::agent_client::AgentError;
use crate::cpu_rate::CpuRate;
use crate::hypervisor::HypervisorError;
use crate::id::{Mismatch, resolve};
use crate::private;
use crate::sandbox::{Machine, Sandbox, SandboxError, SandboxEvents, Sandboxes};
use crate::store::{Collection, Durability, StoreError};
use crate::undo::{Injected, Leftovers};
use isopod_protocols::guest::MAX_CONTAINERS;
use k8s_cri::v1::{ContainerConfig, LinuxContainerResources};
use log_file::LogFile;
use output::Carried;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, OwnedMutexGuard, mpsc, watch};

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// There is no such container.
    #[error("no container {0:?}")]
    NotFound(String),
    /// The prefix of an id fits several containers.
    #[error("{0:?} is the begin of more than one container id: give more of it")]
    Ambiguous(String),
    /// The container has no name.
    #[error("container has no name: set metadata.name")]
    NoName,
    /// A container of that name and attempt is there.
    #[error("container {name} is there already as {id}: remove that one first, or count its attempt up")]
    NameTaken {
        /// Sandbox, name and attempt.
        name: String,
        /// The container that has it.
        id: String,
    },
    /// Its sandbox has as many as there may be.
    #[error(
        "pod sandbox {0} has {MAX_CONTAINERS} containers, the most there can be: remove those that have exited"
    )]
    TooMany(String),
    /// It cannot be done in this state.
    #[error("container {id} is {state}, not {wanted}")]
    WrongState {
        /// The container.
        id: String,
        /// The state that it would have to be in.
        wanted: &'static str,
        /// Its state.
        state: State,
    },
    /// A group without a user.
    #[error("run_as_group needs run_as_user or run_as_username: set one of them")]
    GroupWithoutUser,
    /// A user or group id that is none.
    #[error("{field}: {value} is no id: ids are 0 to 4294967294")]
    BadId {
        /// The field, as the CRI names it.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
    /// A namespace of the host.
    #[error("{0} cannot be had in a pod of its own VM: it has a kernel of its own; leave it out")]
    HostNamespace(&'static str),
    /// The log would be elsewhere.
    #[error("log_path {0:?} leaves the pod's log directory: give a plain relative path")]
    BadLogPath(String),
    /// An exec of nothing.
    #[error("exec has no command: name a program")]
    NoExecCommand,
    /// The exec took too long and was killed.
    #[error("command in container {id} did not end within {seconds} s and was killed")]
    ExecTimeout {
        /// The container.
        id: String,
        /// The limit.
        seconds: u64,
    },
    /// The command cannot be run.
    #[error("container {id} cannot be started: {message}")]
    Command {
        /// The container.
        id: String,
        /// The agent's words.
        message: String,
    },
    /// It was killed and is still there.
    #[error("container {id} still runs {seconds} s after it was killed; stop its pod")]
    StillRunning {
        /// The container.
        id: String,
        /// How long was waited.
        seconds: u64,
    },
    /// It has no log.
    #[error("container {0} has no log: it was made without log_path")]
    NoLog(String),
    /// It cannot be described.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its description cannot be sent.
    #[error("container cannot be described to its agent: {0}")]
    Encode(serde_json::Error),
    /// Its sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Its VM.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Its agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// One of its streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// Its log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its record on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error("{what} {path}: {source}")]
    File {
        /// Which one.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The client left while it was made.
    #[error("the client left before container {0} was made: it was undone")]
    Abandoned(String),
    /// The daemon goes down.
    #[error("the daemon is going down: the next one takes care of what was begun in pod sandbox {0}")]
    GoingDown(String),
    /// It failed, and cleaning up failed too.
    #[error("{cause}; and then not all could be undone: {leftovers}")]
    Undo {
        /// Why it failed.
        cause: Box<ContainerError>,
        /// What stayed.
        leftovers: Leftovers,
    },
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
        })
    }
}

/// A container.
pub struct Container {
    /// Its id, chosen by us.
    pub id: String,
    name: String,
    record: Mutex<Record>,
    log: Option<Arc<LogFile>>,
    /// Marks every change of state.
    changes: watch::Sender<()>,
    /// Held by start and remove: neither happens during the other.
    operation: tokio::sync::Mutex<()>,
    /// Its stop signal was sent.
    asked_to_stop: AtomicBool,
    output: Mutex<Vec<Carried>>,
    /// Filled when no exec of an earlier daemon is left.
    stale_execs: OnceCell<()>,
    /// Its use of CPUs, see ContainerStats.
    pub cpu_rate: CpuRate,
}

impl Container {
    fn new(id: String, name: String, record: Record, log: Option<Arc<LogFile>>) -> Self {
        Self {
            id,
            name,
            record: Mutex::new(record),
            log,
            changes: watch::Sender::new(()),
            operation: tokio::sync::Mutex::default(),
            asked_to_stop: AtomicBool::new(false),
            output: Mutex::default(),
            stale_execs: OnceCell::new(),
            cpu_rate: CpuRate::default(),
        }
    }

    /// All that is known of it, as it is now.
    pub fn snapshot(&self) -> Record {
        self.record().clone()
    }

    /// What kubelet asked for.
    pub fn config(&self) -> ContainerConfig {
        self.record().config.clone()
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
        // Nothing that holds it can panic half-way through a change.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn output_is_carried(&self) -> bool {
        !self.output.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn add_output(&self, task: Carried) {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Waits until its output is in its log; past `limit` only what has come by then is written.
    async fn drain(&self, limit: Duration) {
        let tasks = std::mem::take(&mut *self.output.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            if !task.finish(limit).await {
                let seconds = limit.as_secs();
                tracing::warn!(
                    container = self.id,
                    seconds,
                    "output did not end in time: its rest is not in the log"
                );
            }
        }
    }
}

/// All containers of the node.
pub struct Containers {
    sandboxes: Arc<Sandboxes>,
    records: Collection<Record>,
    /// Directory of streams' positions.
    streams: PathBuf,
    table: Mutex<Table>,
    /// Held while a pod's VM is placed on CPUs of the node.
    placing: Mutex<()>,
}

#[derive(Default)]
struct Table {
    by_id: BTreeMap<String, Arc<Container>>,
    /// Name to id, from before a container is made until it is removed.
    names: HashMap<String, String>,
    /// By sandbox: held while its disk's layers change.
    pods: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
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
        // Nothing that holds it can panic half-way through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pod_lock(&self, sandbox_id: &str) -> OwnedMutexGuard<()> {
        let lock = Arc::clone(self.table().pods.entry(sandbox_id.to_owned()).or_default());
        lock.lock_owned().await
    }

    fn reserve(&self, name: &str, id: &str) -> Result<(), ContainerError> {
        let mut table = self.table();
        if let Some(id) = table.names.get(name) {
            return Err(ContainerError::NameTaken { name: name.to_owned(), id: id.clone() });
        }
        table.names.insert(name.to_owned(), id.to_owned());
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

    fn forget(&self, id: &str) -> Result<(), ContainerError> {
        self.records.remove(id)?;
        let mut table = self.table();
        if let Some(container) = table.by_id.remove(id) {
            table.names.remove(&container.name);
            let sandbox_id = container.sandbox_id();
            if !table.by_id.values().any(|c| c.record().sandbox_id == sandbox_id) {
                table.pods.remove(&sandbox_id);
            }
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
        limits: &LinuxContainerResources,
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

    /// Has the pod's VM run on the CPUs and memory nodes of its containers that have not ended, where the one of that id has
    /// these limits. Called whenever one of them changes.
    fn place(&self, sandbox: &Sandbox, changed: Option<(&str, &LinuxContainerResources)>) {
        let _one_at_a_time = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.of_sandbox(&sandbox.id).into_iter().filter(|other| {
            changed.is_none_or(|(id, _)| other.id != id) && !matches!(other.state(), State::Exited(_))
        });
        let all: Vec<_> = others.map(|other| other.record().resources.clone()).collect();
        let (cpus, mems) = resources::place(all.iter().chain(changed.map(|(_, limits)| limits)));
        sandbox.cgroup.place(cpus, mems);
    }

    fn save_resources(
        &self,
        container: &Container,
        resources: LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        container.record().resources = resources;
        Ok(self.records.put(&container.id, &container.snapshot())?)
    }
}
