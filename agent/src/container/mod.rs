//! Containers: made, started, limited and removed; and the stream of their states.

pub mod child;

use crate::error::AgentError;
use crate::id::Id;
use crate::sandbox::Sandbox;
use futures_util::Stream;
use isopod_protocols::agent::*;
use std::pin::Pin;
use std::sync::Arc;
use tonic::Status;

/// The table of containers.
#[derive(Default)]
pub struct Containers {}

impl Containers {
    /// Ids of the containers that run now.
    pub fn running(&self) -> Vec<Id> {
        Vec::new()
    }
}

/// Why a container call failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Comes with the next change.
    #[error("containers are not implemented yet")]
    NotYet,
}

/// What `Watch` answers with.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

/// Answers `CreateContainer`.
pub async fn create(
    _: &Arc<Sandbox>,
    _: CreateContainerRequest,
) -> Result<CreateContainerResponse, AgentError> {
    Err(ContainerError::NotYet.into())
}

/// Answers `StartContainer`.
pub async fn start(_: &Arc<Sandbox>, _: StartContainerRequest) -> Result<StartContainerResponse, AgentError> {
    Err(ContainerError::NotYet.into())
}

/// Answers `UpdateContainer`.
pub async fn update(
    _: &Arc<Sandbox>,
    _: UpdateContainerRequest,
) -> Result<UpdateContainerResponse, AgentError> {
    Err(ContainerError::NotYet.into())
}

/// Answers `RemoveContainer`.
pub async fn remove(
    _: &Arc<Sandbox>,
    _: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, AgentError> {
    Err(ContainerError::NotYet.into())
}

/// Answers `Watch`.
pub fn watch(_: &Arc<Sandbox>) -> Result<EventStream, AgentError> {
    Err(ContainerError::NotYet.into())
}
