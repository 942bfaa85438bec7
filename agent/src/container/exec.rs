//! Another process in a running container, in the container's cgroup. What it leaves in the background is the
//! container's; killing the exec at its limit ends its process and that one's descendants ([`tree`]).

use super::launch::{LaunchError, Launched, await_exec, launch};
use super::processes::{ProcessError, unknown};
use super::spec::{check_arguments, check_environment};
use super::table::{Container, Containers, NamespacesGuard};
use crate::child::message::{ChildRequest, ExecRequest};
use crate::console;
use crate::event_loop::{blocking, to_the_end};
use crate::id::Id;
use crate::process::{Process, tree};
use crate::reaper::{ProcessHandle, Reaper};
use crate::stdio::{PendingStreams, Stdin};
use isopod_protocols::agent::{
    ProcessExit, RemoveExecRequest, RemoveExecResponse, StartExecRequest, StartExecResponse,
};
use std::io::{self, PipeReader, PipeWriter, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Answers `StartExec`.
pub async fn start_exec(
    containers: &Arc<Containers>,
    request: StartExecRequest,
) -> Result<StartExecResponse, ProcessError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let exec = Id::parse("process_id", &request.process_id)?;
    check_arguments("args", &request.args)?;
    check_environment(&request.env)?;
    containers.states.require_running(&id)?;
    let container = containers.container(&id).ok_or_else(|| unknown(&id, None))?;
    if !container.reserve_exec(&exec) {
        return Err(ProcessError::Exists { container: id, process: exec });
    }
    let containers = containers.clone();
    to_the_end(async move {
        let started = start(&containers, &container, &exec, request).await;
        if started.is_err() {
            container.forget_exec(&exec);
        }
        Ok(StartExecResponse { pid: started?.handle().pid() as u32 })
    })
    .await
}

/// What an exec's one-shot child gets.
struct Order {
    request: ChildRequest,
    first: ProcessHandle,
    namespaces: NamespacesGuard,
    status: (PipeReader, PipeWriter),
    /// Standard descriptors; absent with a terminal.
    pipes: Option<[OwnedFd; 3]>,
}

async fn start(
    containers: &Containers,
    container: &Arc<Container>,
    exec: &Id,
    request: StartExecRequest,
) -> Result<Arc<Process>, ProcessError> {
    let (order, streams) = prepare(container, exec, request).await?;
    let ooms = container.cgroup().oom_kills();
    let reaper = containers.reaper.clone();
    let launched = blocking(move || carry_out(&reaper, order)).await;
    let (launched, namespaces) = launched.map_err(|source| ProcessError::Launch {
        container: container.id().clone(),
        process: exec.clone(),
        source,
    })?;
    let Launched { process: handle, terminal, maker } = launched;
    let streams = match streams.complete(terminal) {
        Ok(streams) => streams,
        Err(error) => {
            blocking(move || give_up(&handle)).await;
            return Err(system(container, exec, "connected")(error));
        }
    };
    let process = Arc::new(Process::new(handle, streams));
    tokio::spawn(await_end(container.clone(), process.clone(), ooms));
    container.add_exec(exec, process.clone());
    // Until then the container's root cannot be unmounted.
    tokio::spawn(async move {
        maker.ended().await;
        drop(namespaces);
    });
    containers.tell_appearance();
    Ok(process)
}

/// Collects what the exec is made from, and holds the container's namespaces from here on.
async fn prepare(
    container: &Container,
    exec: &Id,
    request: StartExecRequest,
) -> Result<(Order, PendingStreams), ProcessError> {
    let first = container.first_process().ok_or_else(|| unknown(container.id(), None))?;
    let namespaces = container.namespaces().await;
    let other_namespaces = match namespaces.as_ref() {
        Some(namespaces) => namespaces.others().len(),
        None => return Err(unknown(container.id(), None)),
    };
    let status = pipe().map_err(system(container, exec, "watched"))?;
    let stdin = Stdin { open: request.stdin, once: true };
    let (streams, pipes) = PendingStreams::new(request.terminal, stdin, container.uid()).map_err(system(
        container,
        exec,
        "connected",
    ))?;
    let first = first.handle().clone();
    let request = ChildRequest::Exec(ExecRequest {
        config: container.config(),
        cgroup: container.cgroup().own(),
        first_pid: first.pid(),
        other_namespaces,
        args: request.args,
        env: request.env,
        terminal: request.terminal,
    });
    Ok((Order { request, first, namespaces, status, pipes }, streams))
}

/// Has a one-shot child make the exec, and waits until it executes its command. Blocks.
fn carry_out(reaper: &Reaper, order: Order) -> Result<(Launched, NamespacesGuard), LaunchError> {
    let Order { request, first, namespaces, status: (status, their_status), pipes } = order;
    let mut fds = vec![their_status.as_fd(), first.as_fd()];
    if let Some(namespaces) = namespaces.as_ref() {
        fds.push(namespaces.mounts());
        fds.extend(namespaces.others());
    }
    fds.extend(pipes.iter().flatten().map(AsFd::as_fd));
    let launched = launch(reaper, &request, &fds)?;
    // Only the new process's own end must keep the pipe open.
    drop((their_status, pipes));
    if let Err(error) = await_exec(OwnedFd::from(status)) {
        give_up(&launched.process);
        return Err(error);
    }
    Ok((launched, namespaces))
}

/// Ends what was made for an exec that cannot be started. Blocks.
fn give_up(process: &ProcessHandle) {
    if let Err(error) = tree::kill(process.pid(), process.as_fd()) {
        console::error!("an exec that was not started left something behind: {error}");
    }
}

/// Makes the exec's end known. The kernel counts OOM kills for the container as a whole.
async fn await_end(container: Arc<Container>, process: Arc<Process>, ooms_before: u64) {
    let end = process.handle().ended().await;
    process.set_exit(ProcessExit {
        code: end.code,
        exited_at_ns: end.at_ns,
        oom_killed: container.cgroup().oom_kills() > ooms_before,
    });
}

/// Answers `RemoveExec`: of one exec, or of all in a container. An exec that still runs is killed, alone:
/// processes that it left in the background live on until the container ends.
pub async fn remove_exec(
    containers: &Containers,
    request: RemoveExecRequest,
) -> Result<RemoveExecResponse, ProcessError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let wanted = Id::parse_optional("process_id", &request.process_id)?;
    let Some(container) = containers.container(&id) else { return Ok(RemoveExecResponse {}) };
    let execs = match wanted {
        Some(exec) => container.exec(&exec).map(|process| (exec, process)).into_iter().collect(),
        None => container.all_execs(),
    };
    to_the_end(async move {
        for (exec, process) in execs {
            remove(&container, &exec, &process).await?;
        }
        Ok(RemoveExecResponse {})
    })
    .await
}

async fn remove(container: &Container, exec: &Id, process: &Process) -> Result<(), ProcessError> {
    process.handle().signal(libc::SIGKILL).map_err(system(container, exec, "killed"))?;
    process.exit().await;
    process.streams().abandon();
    container.forget_exec(exec);
    Ok(())
}

/// An error of the system, about one exec.
fn system(
    container: &Container,
    exec: &Id,
    action: &'static str,
) -> impl FnOnce(io::Error) -> ProcessError + use<> {
    let (container, process) = (container.id().clone(), exec.as_str().to_owned());
    move |source| ProcessError::System { container, process, action, source }
}
