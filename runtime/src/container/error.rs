//! Why operations on containers fail.
//!
//! `cri` makes gRPC's codes of them.

use super::record::State;
use super::stdio::StdioError;
use super::{LimitError, LogError};
use crate::agent_client::AgentError;
use crate::hypervisor::HypervisorError;
use crate::sandbox::SandboxError;
use crate::store::StoreError;
use crate::undo::{Injected, Leftovers};
use isopod_protocols::guest::MAX_CONTAINERS;
use std::path::PathBuf;

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// There is no such container.
    #[error("no container {0:?}")]
    NotFound(String),
    /// The prefix of an id fits several containers.
    #[error("{0:?} is the begin of more than one container id: give more of it")]
    Ambiguous(String),
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
    /// There is too much to keep of it beside the others.
    #[error(
        "pod sandbox {sandbox}: labels, annotations and mounts of {what} would take {bytes} bytes, more than the {most} there may be: use shorter ones, or remove containers that have exited"
    )]
    TooHeavy {
        /// The pod.
        sandbox: String,
        /// What there is too much of.
        what: &'static str,
        /// How much it would be.
        bytes: usize,
        /// How much there may be.
        most: usize,
    },
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
    /// An id that somebody else has, or that is no plain name.
    #[error("container id {0:?} cannot be used: give another one of letters, digits, '-', '_' and '.'")]
    BadId(String),
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
    /// It has too many execs that are not over.
    #[error(
        "container {id} has {count} execs that its agent has not ended yet, the most there can be: \
         try again later, or stop its pod"
    )]
    TooManyExecs {
        /// The container.
        id: String,
        /// How many.
        count: usize,
    },
    /// Its removal has begun.
    #[error("container {0} is being removed: it cannot be started; remove it again")]
    BeingRemoved(String),
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
    /// Its limits.
    #[error(transparent)]
    Limit(#[from] LimitError),
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
