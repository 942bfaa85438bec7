//! Calls on the processes of containers: wait, signal, terminal size.

use super::launch::LaunchError;
use super::spec::SpecError;
use super::state::StateError;
use super::table::Containers;
use crate::cgroup::{Cgroup, CgroupError};
use crate::event_loop::blocking;
use crate::id::{Id, IdError};
use crate::process::Process;
use crate::process::tree::{self, TreeError};
use isopod_protocols::agent::{
    ResizeTerminalRequest, ResizeTerminalResponse, SignalProcessRequest, SignalProcessResponse,
    WaitProcessRequest, WaitProcessResponse,
};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Largest signal number of Linux.
const MAX_SIGNAL: u32 = 64;

/// Why a process call failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The request names no container or process.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No such process.
    #[error("container {container} has no process {process:?}")]
    Unknown {
        /// The container.
        container: Id,
        /// The exec; empty for the container's first process.
        process: String,
    },
    /// The id is taken.
    #[error("container {container} has a process {process} already: remove it or use another id")]
    Exists {
        /// The container.
        container: Id,
        /// The exec.
        process: Id,
    },
    /// A request that makes no sense.
    #[error("{field} {rule}")]
    Request {
        /// Field of the request.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The container is not in a state for this.
    #[error(transparent)]
    State(#[from] StateError),
    /// Command or environment cannot be used.
    #[error(transparent)]
    Command(#[from] SpecError),
    /// The process could not be made, or could not execute its command.
    #[error("process {process} in container {container}")]
    Launch {
        /// The container.
        container: Id,
        /// The exec.
        process: Id,
        /// Why.
        source: LaunchError,
    },
    /// The processes of a container could not be killed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// An exec and its descendants could not be killed.
    #[error("processes of an exec in container {container}")]
    Tree {
        /// The container.
        container: Id,
        /// Why.
        source: TreeError,
    },
    /// A system call on the process or its streams.
    #[error("process {process:?} in container {container} cannot be {action}")]
    System {
        /// The container.
        container: Id,
        /// The exec; empty for the container's first process.
        process: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Answers `WaitProcess`.
pub async fn wait(
    containers: &Containers,
    request: WaitProcessRequest,
) -> Result<WaitProcessResponse, ProcessError> {
    let process = find(containers, &request.container_id, &request.process_id)?;
    Ok(WaitProcessResponse { exit: Some(process.exit().await) })
}

/// Answers `SignalProcess`.
pub async fn signal(
    containers: &Containers,
    request: SignalProcessRequest,
) -> Result<SignalProcessResponse, ProcessError> {
    let process = find(containers, &request.container_id, &request.process_id)?;
    let container = Id::parse("container_id", &request.container_id)?;
    if !(1..=MAX_SIGNAL).contains(&request.signal) {
        return Err(ProcessError::Request { field: "signal", rule: "must be 1 to 64" });
    }
    if request.whole_tree {
        if request.signal != libc::SIGKILL as u32 {
            let rule = "goes to a whole tree only when it is SIGKILL (9): the kernel offers no other";
            return Err(ProcessError::Request { field: "signal", rule });
        }
        kill_all(&process, &container, request.process_id.is_empty()).await?;
    } else {
        process.handle().signal(request.signal as i32).map_err(|source| ProcessError::System {
            container,
            process: request.process_id,
            action: "signalled",
            source,
        })?;
    }
    Ok(SignalProcessResponse {})
}

/// Kills all of a container with its first process, or an exec with its descendants.
async fn kill_all(process: &Arc<Process>, container: &Id, first: bool) -> Result<(), ProcessError> {
    if first {
        return Ok(Cgroup::of_container(container).kill()?);
    }
    let process = process.clone();
    let killed = blocking(move || tree::kill(process.handle().pid(), process.handle().as_fd())).await;
    killed.map_err(|source| ProcessError::Tree { container: container.clone(), source })
}

/// Answers `ResizeTerminal`.
pub async fn resize_terminal(
    containers: &Containers,
    request: ResizeTerminalRequest,
) -> Result<ResizeTerminalResponse, ProcessError> {
    let process = find(containers, &request.container_id, &request.process_id)?;
    let rule = "must be 65535 characters at most";
    let columns = u16::try_from(request.width).map_err(|_| ProcessError::Request { field: "width", rule })?;
    let rows = u16::try_from(request.height).map_err(|_| ProcessError::Request { field: "height", rule })?;
    if !process.streams().has_terminal() {
        return Err(ProcessError::Request { field: "process", rule: "has no terminal" });
    }
    // A terminal whose last process has gone takes no size; nobody would see it.
    let _ = process.streams().resize(columns, rows);
    Ok(ResizeTerminalResponse {})
}

fn find(containers: &Containers, container: &str, process: &str) -> Result<Arc<Process>, ProcessError> {
    let container = Id::parse("container_id", container)?;
    let process = Id::parse_optional("process_id", process)?;
    let found = containers.process(&container, process.as_ref());
    found.ok_or_else(|| unknown(&container, process.as_ref()))
}

/// Tells an unknown process in a known container from an unknown container.
pub(super) fn unknown(container: &Id, process: Option<&Id>) -> ProcessError {
    ProcessError::Unknown {
        container: container.clone(),
        process: process.map(|id| id.as_str().to_owned()).unwrap_or_default(),
    }
}
