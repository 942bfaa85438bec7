//! Starts a container: lets its process, which has waited since its creation, execute the user's command.

use super::error::ContainerError;
use super::launch::await_exec;
use super::table::{Container, Containers, Step};
use crate::clock;
use crate::event_loop::{blocking, to_the_end};
use crate::id::Id;
use isopod_protocols::agent::{StartContainerRequest, StartContainerResponse};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Socket in the container's state directory on which the container library waits for the start.
const NOTIFY: &str = "notify.sock";

/// How long a process that could not execute its command may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Answers `StartContainer`.
pub async fn start(
    containers: &Arc<Containers>,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, ContainerError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let containers = containers.clone();
    to_the_end(async move {
        let (container, mut step) = containers.step(&id).await?;
        let process = container.first_process().expect("a step is given only on a created container");
        containers.states.begin_start(&id)?;
        match let_go(&container, &mut step).await {
            Ok(()) => containers.states.started(&id, clock::now_ns()),
            Err(error) => {
                containers.states.start_failed(&id);
                // Whoever looks next shall see it exited. If it hangs instead, the error tells.
                let _ = container.cgroup().kill();
                let _ = tokio::time::timeout(END_DEADLINE, process.exit()).await;
                return Err(error);
            }
        }
        Ok(StartContainerResponse { pid: process.handle().pid() as u32 })
    })
    .await
}

async fn let_go(container: &Arc<Container>, step: &mut Step) -> Result<(), ContainerError> {
    let status = step.status.take().ok_or(io::ErrorKind::NotFound.into());
    let status: OwnedFd = status.map_err(container.system("status pipe", "found"))?;
    let directory = container.library_directory();
    let notified = container.system("process", "told to start: it has ended");
    let launch_failed = container.launch_failed();
    blocking(move || {
        notify(&directory).map_err(notified)?;
        await_exec(status).map_err(launch_failed)
    })
    .await
}

/// Connects to the socket in `directory`, whose path may be longer than a socket address may be.
fn notify(directory: &std::path::Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    let mut socket = UnixStream::connect(format!("/proc/self/fd/{}/{NOTIFY}", directory.as_raw_fd()))?;
    socket.write_all(b"start")
}
