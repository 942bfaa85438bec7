//! The one place where the agent's errors become gRPC codes.
//!
//! Used by `calls` through `Into<Status>`. It names the errors of all modules; none of them knows of it.

use crate::cgroup::CgroupError;
use crate::child::message::Fault;
use crate::container::{ContainerError, LaunchError, ProcessError, StateError};
use crate::identity::IdentityError;
use crate::network::netlink::NetworkError;
use crate::processors::ProcessorsError;
use crate::sandbox::SandboxError;
use crate::stats::StatsError;
use crate::storage::StorageError;
use crate::storage::copy::CopyError;
use crate::storage::user::UserError;
use crate::storage::volume::VolumeError;
use crate::sysctl::SysctlError;
use std::io::ErrorKind;
use tonic::{Code, Status};

/// Longest error text that leaves the guest, in bytes: gRPC carries it in a header.
const MAX_MESSAGE: usize = 2048;

/// For each error of a module that the server calls: who can do something about it.
macro_rules! statuses {
    ($($error:ident => $code:ident),* $(,)?) => {$(
        impl From<$error> for Status {
            fn from(error: $error) -> Status {
                Status::new($code(&error), message(&error))
            }
        }
    )*};
}

statuses! {
    SandboxError => sandbox_code,
    ContainerError => container_code,
    ProcessError => process_code,
    ProcessorsError => processors_code,
    StatsError => stats_code,
}

fn sandbox_code(error: &SandboxError) -> Code {
    match error {
        SandboxError::NotSetUp | SandboxError::AlreadySetUp => Code::FailedPrecondition,
        SandboxError::Identity(IdentityError::Sysctl(error)) | SandboxError::Sysctl(error) => {
            sysctl_code(error)
        }
        SandboxError::Identity(_) => Code::InvalidArgument,
        SandboxError::Network(NetworkError::Cards(_)) => Code::FailedPrecondition,
        SandboxError::Network(NetworkError::Refused { .. }) => Code::InvalidArgument,
        SandboxError::Network(NetworkError::Socket(_) | NetworkError::Setting { .. }) => Code::Internal,
        SandboxError::Entropy(_) => Code::InvalidArgument,
        SandboxError::Storage(error) => storage_code(error),
        SandboxError::Kernel(..) | SandboxError::Path { .. } => Code::Internal,
    }
}

fn sysctl_code(error: &SysctlError) -> Code {
    match error {
        // The kernel refuses a value that it does not know, and a setting that it does not have.
        SysctlError::NotAllowed(_) | SysctlError::Value(_) | SysctlError::Refused { .. } => {
            Code::InvalidArgument
        }
    }
}

fn storage_code(error: &StorageError) -> Code {
    match error {
        StorageError::Extent(_) | StorageError::LayerCount(_) | StorageError::LayerChanged { .. } => {
            Code::InvalidArgument
        }
        StorageError::RootExists(_) => Code::AlreadyExists,
        StorageError::LayerLeaving(_) | StorageError::NoRoot(_) => Code::FailedPrecondition,
        StorageError::RootDirectory(error) => copy_code(error),
        StorageError::Volume(error) => volume_code(error),
        StorageError::Device(_)
        | StorageError::Layer { .. }
        | StorageError::Scratch { .. }
        | StorageError::Overlay { .. }
        | StorageError::Unmount { .. }
        | StorageError::Path { .. } => Code::Internal,
    }
}

fn volume_code(error: &VolumeError) -> Code {
    match error {
        VolumeError::Count(_) | VolumeError::Path { .. } | VolumeError::File { .. } => Code::InvalidArgument,
        VolumeError::Copy { source, .. } => copy_code(source),
        VolumeError::Directory { .. } => Code::Internal,
    }
}

fn copy_code(error: &CopyError) -> Code {
    match error {
        CopyError::Refused { source, .. } if source.kind() == ErrorKind::StorageFull => {
            Code::ResourceExhausted
        }
        CopyError::Refused { .. } => Code::Internal,
        CopyError::TooMuch { .. } => Code::InvalidArgument,
        CopyError::Late { .. } => Code::DeadlineExceeded,
    }
}

fn user_code(error: &UserError) -> Code {
    match error {
        UserError::UnknownUser(_)
        | UserError::UnknownGroup(_)
        | UserError::BadId(_)
        | UserError::TooManyGroups(_)
        | UserError::Unreadable { .. } => Code::InvalidArgument,
    }
}

fn stats_code(error: &StatsError) -> Code {
    match error {
        StatsError::Unreadable { .. } | StatsError::Malformed { .. } => Code::Internal,
        StatsError::NotRunning(_) => Code::NotFound,
        StatsError::Id(_) => Code::InvalidArgument,
    }
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::State(error) => state_code(error),
        ContainerError::Storage(error) => storage_code(error),
        ContainerError::User(error) => user_code(error),
        ContainerError::Id(_) | ContainerError::Spec(_) | ContainerError::Target { .. } => {
            Code::InvalidArgument
        }
        ContainerError::Cgroup(error) => cgroup_code(error),
        ContainerError::Launch { source, .. } => launch_code(source),
        ContainerError::PidTarget { .. } => Code::FailedPrecondition,
        ContainerError::System { .. } | ContainerError::Immortal(_) => Code::Internal,
    }
}

fn processors_code(error: &ProcessorsError) -> Code {
    match error {
        ProcessorsError::Count { .. } => Code::InvalidArgument,
        ProcessorsError::Path { .. } => Code::Internal,
    }
}

fn process_code(error: &ProcessError) -> Code {
    match error {
        ProcessError::Unknown { .. } => Code::NotFound,
        ProcessError::Exists { .. } => Code::AlreadyExists,
        ProcessError::Id(_) | ProcessError::Request { .. } | ProcessError::Command(_) => {
            Code::InvalidArgument
        }
        ProcessError::State(error) => state_code(error),
        ProcessError::Launch { source, .. } => launch_code(source),
        ProcessError::Cgroup(error) => cgroup_code(error),
        ProcessError::Tree { .. } | ProcessError::System { .. } => Code::Internal,
    }
}

fn state_code(error: &StateError) -> Code {
    match error {
        StateError::Unknown(_) => Code::NotFound,
        StateError::Exists(_) => Code::AlreadyExists,
        StateError::TooMany(_) => Code::ResourceExhausted,
        StateError::NotCreated { .. } | StateError::NotRunning { .. } => Code::FailedPrecondition,
    }
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::Limits(_) | CgroupError::Devices(_) | CgroupError::Refused { .. } => {
            Code::InvalidArgument
        }
        CgroupError::File { .. } | CgroupError::NotEmpty(_) => Code::Internal,
        CgroupError::Late(_) => Code::DeadlineExceeded,
    }
}

fn launch_code(error: &LaunchError) -> Code {
    match error {
        LaunchError::Failed(failure) => match failure.fault {
            Fault::Command | Fault::Request => Code::InvalidArgument,
            Fault::Guest => Code::Internal,
        },
        LaunchError::Child { .. } => Code::Internal,
        LaunchError::Late { .. } => Code::DeadlineExceeded,
    }
}

/// The message of an error followed by those of its causes, outermost first, of bounded length.
fn message(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    #[test]
    fn status_names_the_path_and_the_cause() {
        let source = std::io::Error::from_raw_os_error(libc::EBUSY);
        let status =
            Status::from(ContainerError::from(StorageError::Unmount { path: "/run/x".into(), source }));
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains("/run/x") && status.message().contains("busy"), "{status}");
    }

    #[test]
    fn wrong_id_is_the_callers_fault() {
        let status = Status::from(ContainerError::from(Id::parse("container_id", "../etc").unwrap_err()));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("container_id"));
    }

    #[test]
    fn long_message_is_cut_at_a_character() {
        let status = Status::from(ContainerError::from(UserError::UnknownUser("ä".repeat(5000))));
        assert!(status.message().len() <= MAX_MESSAGE);
    }
}
