//! Processes of containers: execs, waits, signals, terminals.

use crate::error::AgentError;
use crate::sandbox::Sandbox;
use isopod_protocols::agent::*;
use std::sync::Arc;

/// Why a process call failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Comes with the next change.
    #[error("processes are not implemented yet")]
    NotYet,
}

/// Answers `StartExec`.
pub async fn start_exec(_: &Arc<Sandbox>, _: StartExecRequest) -> Result<StartExecResponse, AgentError> {
    Err(ProcessError::NotYet.into())
}

/// Answers `WaitProcess`.
pub async fn wait(_: &Arc<Sandbox>, _: WaitProcessRequest) -> Result<WaitProcessResponse, AgentError> {
    Err(ProcessError::NotYet.into())
}

/// Answers `RemoveExec`.
pub async fn remove_exec(_: &Arc<Sandbox>, _: RemoveExecRequest) -> Result<RemoveExecResponse, AgentError> {
    Err(ProcessError::NotYet.into())
}

/// Answers `SignalProcess`.
pub async fn signal(_: &Arc<Sandbox>, _: SignalProcessRequest) -> Result<SignalProcessResponse, AgentError> {
    Err(ProcessError::NotYet.into())
}

/// Answers `ResizeTerminal`.
pub async fn resize_terminal(
    _: &Arc<Sandbox>,
    _: ResizeTerminalRequest,
) -> Result<ResizeTerminalResponse, AgentError> {
    Err(ProcessError::NotYet.into())
}
