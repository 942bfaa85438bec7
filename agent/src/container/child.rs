//! The one-shot child that calls the container library.

use std::process::ExitCode;

/// First argument that makes this binary the child.
pub const COMMAND: &str = "container-init";

/// The child's life; `arguments` are those after [`COMMAND`].
pub fn run(_arguments: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
