//! Why a container cannot be made as the CRI asks for it.

/// A `ContainerConfig` that cannot be granted.
#[derive(Debug, thiserror::Error)]
pub enum ContainerConfigError {
    /// The container has no name.
    #[error("container has no name: set metadata.name")]
    NoName,
    /// Neither pod nor image name a command.
    #[error("container {0:?} has no command: set one in the pod, or an entrypoint in the image")]
    NoCommand(String),
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as the CRI names it.
        field: &'static str,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A signal that is none.
    #[error("stop_signal {0}: the CRI has no such signal")]
    BadSignal(i32),
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
    /// A VM pod cannot have it, ever.
    #[error("{what} cannot be had in a pod of its own VM: {instead}")]
    Impossible {
        /// What is asked for.
        what: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// Not built yet.
    #[error("{what} is not supported yet: {instead}")]
    NotYet {
        /// What is asked for.
        what: String,
        /// What to do instead.
        instead: &'static str,
    },
}
