//! The one place where an error of the house becomes a gRPC code. kubelet branches on few of them: NotFound on look-ups,
//! DeadlineExceeded of an exec, Unimplemented; everything else it repeats with growing pauses.

use crate::sandbox::SandboxError;
use tonic::{Code, Status};

impl From<SandboxError> for Status {
    fn from(error: SandboxError) -> Self {
        Self::new(code_of_sandbox(&error), error.to_string())
    }
}

fn code_of_sandbox(error: &SandboxError) -> Code {
    match error {
        SandboxError::Invalid(_) | SandboxError::Ambiguous(_) | SandboxError::Cgroup(_) => {
            Code::InvalidArgument
        }
        SandboxError::NotFound(_) => Code::NotFound,
        SandboxError::NameTaken { .. } => Code::AlreadyExists,
        SandboxError::NotReady { .. } => Code::FailedPrecondition,
        SandboxError::Undo { cause, .. } => code_of_sandbox(cause),
        SandboxError::Hypervisor(_)
        | SandboxError::Agent(_)
        | SandboxError::Store(_)
        | SandboxError::File { .. }
        | SandboxError::Injected(_) => Code::Internal,
    }
}
