//! The one place where an error of the house becomes a gRPC code. kubelet branches on few of them: NotFound on look-ups,
//! DeadlineExceeded of an exec, Unimplemented; everything else it repeats with growing pauses.

use super::container_spec::ContainerConfigError;
use super::sandbox_spec::PodConfigError;
use crate::agent_client::AgentError;
use crate::cgroup::CgroupError;
use crate::container::ContainerError;
use crate::hostile_text;
use crate::image::ImageError;
use crate::network::NetworkError;
use crate::sandbox::SandboxError;
use std::fmt::Display;
use tonic::{Code, Status};

/// Longest error message, bytes: it travels in a header.
const MAX_MESSAGE: usize = 8192;

impl From<SandboxError> for Status {
    fn from(error: SandboxError) -> Self {
        Self::new(code_of_sandbox(&error), message(&error))
    }
}

impl From<PodConfigError> for Status {
    fn from(error: PodConfigError) -> Self {
        Self::new(Code::InvalidArgument, message(&error))
    }
}

impl From<ContainerConfigError> for Status {
    fn from(error: ContainerConfigError) -> Self {
        let code = match error {
            ContainerConfigError::NotYet { .. } => Code::Unimplemented,
            _ => Code::InvalidArgument,
        };
        Self::new(code, message(&error))
    }
}

impl From<ContainerError> for Status {
    fn from(error: ContainerError) -> Self {
        Self::new(code_of_container(&error), message(&error))
    }
}

/// kubelet shows it to people and writes it to its log: whatever an error quotes, it is one printable line.
fn message(error: &impl Display) -> String {
    hostile_text::line(&error.to_string(), MAX_MESSAGE)
}

fn code_of_container(error: &ContainerError) -> Code {
    match error {
        ContainerError::NotFound(_) => Code::NotFound,
        ContainerError::NameTaken { .. } => Code::AlreadyExists,
        ContainerError::WrongState { .. } | ContainerError::NoLog(_) | ContainerError::BeingRemoved(_) => {
            Code::FailedPrecondition
        }
        ContainerError::TooMany(_)
        | ContainerError::TooHeavy { .. }
        | ContainerError::TooManyExecs { .. } => Code::ResourceExhausted,
        ContainerError::Ambiguous(_)
        | ContainerError::BadId(_)
        | ContainerError::Limit(_)
        | ContainerError::NoExecCommand
        | ContainerError::Command { .. } => Code::InvalidArgument,
        ContainerError::ExecTimeout { .. } | ContainerError::StillRunning { .. } => Code::DeadlineExceeded,
        ContainerError::Agent(error) => code_of_agent(error),
        ContainerError::Sandbox(error) => code_of_sandbox(error),
        ContainerError::Undo { cause, .. } => code_of_container(cause),
        ContainerError::Abandoned(_) => Code::Cancelled,
        ContainerError::GoingDown(_) => Code::Unavailable,
        ContainerError::Encode(_)
        | ContainerError::Hypervisor(_)
        | ContainerError::Stdio(_)
        | ContainerError::Log(_)
        | ContainerError::Store(_)
        | ContainerError::File { .. }
        | ContainerError::Injected(_) => Code::Internal,
    }
}

fn code_of_sandbox(error: &SandboxError) -> Code {
    match error {
        SandboxError::Spec(_) | SandboxError::Ambiguous(_) => Code::InvalidArgument,
        SandboxError::TooManyVcpus { .. } => Code::InvalidArgument,
        SandboxError::Cgroup(CgroupError::BadParent(_)) => Code::InvalidArgument,
        SandboxError::NotFound(_) => Code::NotFound,
        SandboxError::NameTaken { .. } => Code::AlreadyExists,
        SandboxError::NotReady { .. } => Code::FailedPrecondition,
        SandboxError::NoUid(_) | SandboxError::TooHeavy { .. } => Code::ResourceExhausted,
        SandboxError::Abandoned(_) => Code::Cancelled,
        SandboxError::GoingDown(_) => Code::Unavailable,
        SandboxError::Agent(error) => code_of_agent(error),
        SandboxError::Undo { cause, .. } => code_of_sandbox(cause),
        // A node that cannot give networks now may do so later: kubelet tries again.
        SandboxError::Network(NetworkError::Conflist(_)) => Code::Unavailable,
        SandboxError::Hypervisor(_)
        | SandboxError::Network(_)
        | SandboxError::Scratch(_)
        | SandboxError::Cgroup(_)
        | SandboxError::Store(_)
        | SandboxError::File { .. }
        | SandboxError::NoGrowth { .. }
        | SandboxError::Injected(_) => Code::Internal,
    }
}

/// A guest may say what it likes of the request; it may not say that what it runs in is unknown.
fn code_of_agent(error: &AgentError) -> Code {
    match error {
        AgentError::Refused { code: code @ (Code::InvalidArgument | Code::FailedPrecondition), .. } => *code,
        AgentError::Refused { .. } | AgentError::Malformed { .. } => Code::Internal,
        AgentError::Timeout { .. } | AgentError::Unreachable { .. } => Code::Unavailable,
    }
}

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        Self::new(code_of_image(&error), message(&error))
    }
}

fn code_of_image(error: &ImageError) -> Code {
    match error {
        ImageError::BadReference { .. } | ImageError::BadCredentials { .. } | ImageError::Ambiguous(_) => {
            Code::InvalidArgument
        }
        ImageError::NotPresent(_) | ImageError::NotFound { .. } => Code::NotFound,
        ImageError::Unauthorized { .. } => Code::Unauthenticated,
        // kubelet strips this code alone from the text, and then knows the text by its beginning
        ImageError::Unavailable { .. } | ImageError::BrokenOff { .. } => Code::Unknown,
        ImageError::WrongPlatform { .. } | ImageError::Unsupported { .. } | ImageError::BadLayer { .. } => {
            Code::FailedPrecondition
        }
        ImageError::TooLarge { .. }
        | ImageError::TooManyImages { .. }
        | ImageError::DiskFull { .. }
        | ImageError::DiskReserve { .. } => Code::ResourceExhausted,
        ImageError::BadAnswer { .. } | ImageError::Corrupt { .. } => Code::DataLoss,
        ImageError::Interrupted(_) => Code::Aborted,
        ImageError::BadConfiguration { .. }
        | ImageError::Converter { .. }
        | ImageError::Io { .. }
        | ImageError::Record(_)
        | ImageError::Injected(_) => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_an_error_is_one_printable_line() {
        let status = Status::from(ContainerError::NotFound("x".into()));
        assert_eq!(status.message(), "no container \"x\"");
        let message = "no\nlevel=info msg=\u{202e}fine".to_owned();
        let status = Status::from(ContainerError::Command { id: "c".into(), message });
        assert!(status.message().ends_with("no\\nlevel=info msg=\\u{202e}fine"), "{status:?}");
    }
}
