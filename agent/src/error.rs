//! The one place where the agent's errors become gRPC codes.

use crate::container::ContainerError;
use crate::id::IdError;
use crate::process::ProcessError;
use crate::sandbox::SandboxError;
use crate::stats::StatsError;
use crate::storage::StorageError;
use crate::storage::user::UserError;
use tonic::{Code, Status};

/// Longest error text that leaves the guest, in bytes: gRPC carries it in a header.
const MAX_MESSAGE: usize = 2048;

/// Any failure of a call. The message says it all; the code says who can do something about it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs)]
pub enum AgentError {
    Id(#[from] IdError),
    Sandbox(#[from] SandboxError),
    Storage(#[from] StorageError),
    User(#[from] UserError),
    Stats(#[from] StatsError),
    Container(#[from] ContainerError),
    Process(#[from] ProcessError),
}

impl AgentError {
    fn code(&self) -> Code {
        match self {
            AgentError::Id(_) | AgentError::User(_) => Code::InvalidArgument,
            AgentError::Sandbox(SandboxError::NotSetUp) => Code::FailedPrecondition,
            AgentError::Sandbox(SandboxError::Path { .. }) => Code::Internal,
            AgentError::Storage(StorageError::NotYet) => Code::Unimplemented,
            AgentError::Stats(error) => match *error {},
            AgentError::Container(ContainerError::NotYet) => Code::Unimplemented,
            AgentError::Process(ProcessError::NotYet) => Code::Unimplemented,
        }
    }
}

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Status {
        let mut message = with_causes(&error);
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        }
        Status::new(error.code(), message)
    }
}

/// The message of an error followed by those of its causes, outermost first.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}
