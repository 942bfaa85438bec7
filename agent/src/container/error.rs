//! Errors of calls on containers. Calls on their processes have [`super::processes::ProcessError`].

use super::launch::LaunchError;
use super::spec::SpecError;
use super::state::StateError;
use super::targets::TargetError;
use crate::cgroup::CgroupError;
use crate::id::{Id, IdError};
use crate::storage::StorageError;
use crate::storage::user::UserError;

/// Why a container call failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The request names no container.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The container is not in a state for this, or not there.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its root, or a volume in it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its user is not in the image, or cannot be looked up there.
    #[error(transparent)]
    User(#[from] UserError),
    /// The spec cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The image and the spec do not fit: a mount or the working directory has no place.
    #[error("container {id}")]
    Target {
        /// The container.
        id: Id,
        /// Why.
        source: TargetError,
    },
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its process could not be made, or could not execute its command.
    #[error("container {id}")]
    Launch {
        /// The container.
        id: Id,
        /// Why.
        source: LaunchError,
    },
    /// The container whose pid namespace is to be joined is not there or has no process.
    #[error("container {id} cannot join the pid namespace of {target:?}: no process lives there")]
    PidTarget {
        /// The container.
        id: Id,
        /// The container named as target.
        target: String,
    },
    /// A file of the container, its streams or its namespaces.
    #[error("{what} of container {id} cannot be {action}")]
    System {
        /// The container.
        id: Id,
        /// Which part.
        what: &'static str,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A killed process that does not go.
    #[error("container {0} still has a process that was killed and does not end")]
    Immortal(Id),
}
