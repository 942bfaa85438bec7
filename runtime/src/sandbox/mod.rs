//! Sandboxes: the VM-isolated environments of pods, their states, their records on disk, and the table of all of them.
//!
//! Called by `cri` and `pod`; `container` uses [`Sandbox`] to reach a pod's VM and agent. What a sandbox is
//! to be comes as a [`SandboxSpec`], whatever API it was asked for by. This module must not know containers:
//! it tells what happens to a sandbox by [`SandboxEvent`]s.
//!
//! # States
//!
//! ```text
//!             a failure undoes everything; the sandbox was never there
//!                ^
//!   reserve -> Starting -> Ready -> Stopping -> Stopped -> (removed)
//!                            |         ^
//!                            +-> Lost -+
//!                     the VM ended by itself
//! ```
//!
//! | state | VM | network, cgroup, scratch | CRI |
//! |---|---|---|---|
//! | Starting | perhaps | perhaps | not shown |
//! | Ready | runs | held | READY |
//! | Lost | gone | held until it is stopped | NOTREADY |
//! | Stopping | being killed | being released; a failure stays here, and the next stop tries again | NOTREADY |
//! | Stopped | gone | released | NOTREADY |
//!
//! # How containers hang on a sandbox
//!
//! `container` keeps its own table and documents, keyed by container id, each with its sandbox's id. Between them:
//!
//! - Work on a container in the guest happens inside [`Sandbox::enter`]: it answers the VM and the agent of a sandbox that
//!   is Ready, and a stop waits until all who entered have left. Calls to the agent fail at once when the VM is killed, so
//!   nobody stays long.
//! - `Pods::stop` calls [`Sandboxes::begin_stop`] (from here on nobody can enter), then
//!   `Containers::kill_all`, then [`Sandboxes::stop`], which kills the VM. `Pods::remove` does the same, then
//!   `Containers::remove_all`, then [`Sandboxes::remove`].
//! - What the agent's Watch stream says, and the loss of a VM, arrive as [`SandboxEvent`]s in the order they
//!   happened, in a short queue per sandbox. `Sandboxes::new` gives `container` the receiver of all queues. Where
//!   a queue is full, that sandbox's agent waits, and no other one.

#[cfg(test)]
pub mod fake;
mod identity;
mod networking;
mod record;
mod record_v1;
mod registry;
mod resize;
mod restore;
mod spec;
mod start;
mod stop;
mod turn;
mod usage;
mod validate;
mod watch;

pub use networking::{PodNetworks, network_config};
pub use record::{Guest, Record, State};
pub use registry::{Host, Sandboxes};
pub use spec::{AskedNamespaces, Dns, PodName, SandboxSpec};
pub use usage::PodUsage;
pub use validate::SandboxSpecError;

use crate::agent_client::{AgentClient, AgentError, AgentEvent};
use crate::cgroup::{CgroupError, PodCgroup};
use crate::cpu_rate::CpuRate;
use crate::hypervisor::{HypervisorError, VmHandle};
use crate::lock::lock;
use crate::network::NetworkError;
use crate::scratch::{ScratchDisk, ScratchError};
use crate::store::StoreError;
use crate::undo::Injected;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use tokio::sync::{RwLock, RwLockReadGuard, mpsc};

/// Why an operation on a sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// It cannot be as it is asked for.
    #[error(transparent)]
    Spec(#[from] SandboxSpecError),
    /// There is no such sandbox.
    #[error("no pod sandbox {0:?}")]
    NotFound(String),
    /// The prefix of an id fits several sandboxes.
    #[error("{0:?} is the begin of more than one pod sandbox id: give more of it")]
    Ambiguous(String),
    /// A pod of the same name, namespace, uid and attempt is there.
    #[error("pod {name} has the sandbox {id} already: remove that one first, or count its attempt up")]
    NameTaken {
        /// Name, namespace, uid and attempt.
        name: String,
        /// The sandbox that has it.
        id: String,
    },
    /// The sandbox does not run.
    #[error("pod sandbox {id} is {state}, not ready")]
    NotReady {
        /// The sandbox.
        id: String,
        /// Its state.
        state: State,
    },
    /// There are too many labels and annotations.
    #[error(
        "pod {pod}: labels and annotations of {what} would take {bytes} bytes, more than the {most} there may be: use shorter \
         ones, or remove pods that have stopped"
    )]
    TooHeavy {
        /// Name, namespace, uid and attempt.
        pod: String,
        /// Of it, or of all.
        what: &'static str,
        /// How much it would be.
        bytes: usize,
        /// How much there may be.
        most: usize,
    },
    /// All host user ids for VMMs are taken.
    #[error("all {0} user ids for VMMs are in use: enlarge vm.uid_count, or remove pods")]
    NoUid(u32),
    /// It would need more processors than its VM can have.
    #[error(
        "pod sandbox {id} would need {wanted} virtual CPUs, and its VM can have {most} while it runs: raise vm.max_vcpus, or \
         restart the pod with its new limits"
    )]
    TooManyVcpus {
        /// The sandbox.
        id: String,
        /// What it would need.
        wanted: u8,
        /// What it can have.
        most: u8,
    },
    /// The guest did not take the memory that was added.
    #[error(
        "guest of {id} has {have_mib} MiB of {wanted_mib} MiB after {seconds} s: its kernel does not add memory"
    )]
    NoGrowth {
        /// The sandbox.
        id: String,
        /// What it should have.
        wanted_mib: u32,
        /// What it has.
        have_mib: u64,
        /// The limit.
        seconds: u64,
    },
    /// The caller left before the sandbox was ready.
    #[error("the caller left before pod sandbox {0} was ready; all of it is undone")]
    Abandoned(String),
    /// The daemon goes down.
    #[error("the daemon is going down: the next one takes care of pod sandbox {0}")]
    GoingDown(String),
    /// The VM.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The scratch disk.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The record on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or directory of the sandbox.
    #[error("pod sandbox {id}: {what} {path}: {source}")]
    File {
        /// The sandbox.
        id: String,
        /// Which one.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It failed, and cleaning up failed too.
    #[error("{cause}; and then not all could be undone: {leftovers}")]
    Undo {
        /// Why it failed.
        cause: Box<SandboxError>,
        /// What stayed.
        leftovers: String,
    },
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// What happens to a sandbox that its containers must know.
#[derive(Debug)]
pub enum SandboxEvent {
    /// The agent's word on its containers: a snapshot of all, or one change.
    Agent(AgentEvent),
    /// The VM is gone, and all containers with it, whoever ended it.
    Gone,
}

/// The events of one sandbox, for the task that follows it.
#[derive(Debug)]
pub struct SandboxEvents {
    /// The sandbox.
    pub sandbox_id: String,
    /// In the order they happened; it ends when the VM has.
    pub queue: mpsc::Receiver<SandboxEvent>,
}

/// A sandbox. What never changes is public; its state and its VM are asked for.
pub struct Sandbox {
    /// Its id, unique on the node.
    pub id: String,
    /// As it was asked for.
    pub spec: SandboxSpec,
    /// When it was made, nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// Its cgroup on the host.
    pub cgroup: PodCgroup,
    /// Directory of its VM's sockets and log.
    pub directory: PathBuf,
    /// Its use of CPUs, see PodSandboxStats.
    pub cpu_rate: CpuRate,
    record: Mutex<Record>,
    machine: OnceLock<Machine>,
    /// Until the VM has ended, unless an earlier daemon made it.
    scratch: Mutex<Option<ScratchDisk>>,
    gate: RwLock<()>,
}

/// A sandbox's VM, and the agent in it.
#[derive(Clone)]
pub struct Machine {
    /// The VM.
    pub vm: VmHandle,
    /// The agent.
    pub agent: AgentClient,
}

/// A sandbox that was Ready when it was entered, and is not taken down before this goes.
pub struct Entered<'a> {
    /// Its VM and agent.
    pub machine: Machine,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Sandbox {
    fn new(id: String, record: Record) -> Self {
        Self {
            id,
            cpu_rate: CpuRate::default(),
            spec: record.spec.clone(),
            created_at_ns: record.created_at_ns,
            cgroup: record.cgroup.clone(),
            directory: record.directory.clone(),
            record: Mutex::new(record),
            machine: OnceLock::new(),
            scratch: Mutex::default(),
            gate: RwLock::new(()),
        }
    }

    /// Keeps its scratch disk, until [`Self::vm_has_ended`].
    fn keep(&self, disk: ScratchDisk) {
        *lock(&self.scratch) = Some(disk);
    }

    /// Lets go of what is kept for as long as the VM may have it, too.
    fn vm_has_ended(&self) {
        drop(lock(&self.scratch).take());
    }

    /// Its state now.
    pub fn state(&self) -> State {
        self.record().state
    }

    /// Its record now.
    pub fn snapshot(&self) -> Record {
        self.record().clone()
    }

    /// Directory of its containers' logs on the host, if it has one.
    pub fn log_directory(&self) -> Option<&Path> {
        self.spec.log_directory.as_deref()
    }

    /// Its VM and agent, to work with as long as the answer is held.
    ///
    /// # Errors
    /// [`SandboxError::NotReady`] in every state but Ready.
    pub async fn enter(&self) -> Result<Entered<'_>, SandboxError> {
        let gate = self.gate.read().await;
        let machine = self.machine()?;
        Ok(Entered { machine, _gate: gate })
    }

    /// Its VM and agent, without holding a stop off: for what may break at any moment, such as waits and streams.
    ///
    /// # Errors
    /// [`SandboxError::NotReady`] in every state but Ready.
    pub fn machine(&self) -> Result<Machine, SandboxError> {
        let state = self.state();
        match self.machine.get() {
            Some(machine) if state == State::Ready => Ok(machine.clone()),
            _ => Err(SandboxError::NotReady { id: self.id.clone(), state }),
        }
    }

    /// Its VM and agent as long as the VM is there: also while it is being stopped, for what must be ended first.
    pub fn machine_until_stopped(&self) -> Option<Machine> {
        let there = matches!(self.state(), State::Ready | State::Stopping);
        self.machine.get().filter(|_| there).cloned()
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    fn file_error(&self, what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SandboxError {
        let (id, path) = (self.id.clone(), path.to_owned());
        move |source| SandboxError::File { id, what, path, source }
    }
}
