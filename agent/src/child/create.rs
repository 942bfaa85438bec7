//! Makes a container with youki's `libcontainer`, up to the exec of its command.
//!
//! The library forks twice: the second process is the container's, which enters the namespaces, mounts the
//! root, gives up privileges and then waits for a connection to `notify.sock` in the container's directory.
//! What it does after that is [`UserCommand`].

use super::filter::Filter;
use super::message::{ContainerRequest, Descriptors, Failure, Fault, Made, with_causes};
use super::{command, environment};
use crate::sys;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

/// Socket in the bundle on which the library hands over the terminal's controlling end.
const CONSOLE: &str = "console.sock";

/// Makes the container.
pub fn create(request: &ContainerRequest, fds: Vec<OwnedFd>) -> Result<Made, Failure> {
    let mut fds = Descriptors::new(fds);
    // Leaked on purpose: it must stay open in the container's process until exec, and the executor must be
    // cloneable.
    let status: &'static OwnedFd = Box::leak(Box::new(fds.take()?));
    // Read now, as the bundle is out of reach once the process has entered its root.
    let environment = environment::read(&request.bundle)?;
    let filter = Filter::read(&request.bundle)?.map(Arc::new);
    let mut builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(&request.states)
        .map_err(|error| failure(&error))?
        .with_executor(UserCommand { status, environment, filter });
    let console = if request.terminal {
        // The path may be longer than a socket address: the name is bound from inside its directory.
        std::env::set_current_dir(&request.bundle)
            .map_err(|error| Failure::guest("bundle cannot be entered", error))?;
        let listener = UnixListener::bind(CONSOLE)
            .map_err(|error| Failure::guest("console socket cannot be bound", error))?;
        builder = builder.with_console_socket(Some(request.bundle.join(CONSOLE)));
        Some(listener)
    } else {
        builder = builder.with_stdin(fds.take()?).with_stdout(fds.take()?).with_stderr(fds.take()?);
        None
    };
    let container = builder
        .as_init(&request.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| failure(&error))?;
    let pid = container.pid().ok_or_else(|| Failure {
        fault: Fault::Guest,
        message: "the container library made no process".to_owned(),
    })?;
    let terminal = console
        .map(|listener| listener.accept().and_then(|(socket, _)| receive_terminal(&socket)))
        .transpose()
        .map_err(|error| Failure::guest("terminal did not arrive", error))?;
    Ok(Made { pid: pid.as_raw(), terminal })
}

/// Receives the terminal's controlling end, which the library sends beside the name of the terminal device.
pub fn receive_terminal(socket: &UnixStream) -> std::io::Result<OwnedFd> {
    let (_, fds) = sys::descriptor::receive_with_fds(socket, &mut [0; 64])?;
    fds.into_iter().next().ok_or_else(|| std::io::Error::other("no descriptor came along"))
}

/// Specs that the library refuses before it does anything are the caller's fault, all else the guest's.
fn failure(error: &LibcontainerError) -> Failure {
    let fault = match error {
        LibcontainerError::InvalidSpec(_)
        | LibcontainerError::MissingSpec(_)
        | LibcontainerError::InvalidID(_)
        | LibcontainerError::Spec(_) => Fault::Request,
        _ => Fault::Guest,
    };
    Failure { fault, message: with_causes(error) }
}

/// What the container's process does when it is let go.
#[derive(Clone)]
struct UserCommand {
    status: &'static OwnedFd,
    environment: Vec<Vec<u8>>,
    filter: Option<Arc<Filter>>,
}

impl Executor for UserCommand {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let args = process.args().as_deref().unwrap_or_default();
        let status = self.status.try_clone().map_err(|error| ExecutorError::Other(error.to_string()))?;
        command::run(status, args, self.environment.clone(), self.filter.as_deref())
    }

    /// A command that is not there is found out when it is started, which is when the caller asks about it.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The command gets the spec's environment by exec; this process keeps its own.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
