//! Another process in a running container, in the container's cgroup. What it leaves in the background is the
//! container's; killing the exec at its limit ends its process and that one's descendants ([`super::tree`]).

use super::{Process, ProcessError, tree};
use crate::child::message::{ExecRequest, Request};
use crate::console;
use crate::container::Container;
use crate::container::launch::{LaunchError, Launched, await_exec, launch};
use crate::container::spec::{check_arguments, check_environment};
use crate::error::AgentError;
use crate::id::Id;
use crate::reaper::Child;
use crate::sandbox::Sandbox;
use crate::stdio::{Stdin, Streams};
use crate::task::{blocking, to_the_end};
use isopod_protocols::agent::*;
use std::io::pipe;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Answers `StartExec`.
pub async fn start_exec(
    sandbox: &Arc<Sandbox>,
    request: StartExecRequest,
) -> Result<StartExecResponse, AgentError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let exec = Id::parse("process_id", &request.process_id)?;
    check_arguments("args", &request.args).map_err(ProcessError::from)?;
    check_environment(&request.env).map_err(ProcessError::from)?;
    sandbox.containers.board.require_running(&id).map_err(ProcessError::from)?;
    let container = sandbox.containers.container(&id).ok_or_else(|| super::unknown(&id, None))?;
    container.reserve_exec(&exec)?;
    let sandbox = sandbox.clone();
    to_the_end(async move {
        let started = start(&sandbox, &container, &exec, request).await;
        if started.is_err() {
            container.forget_exec(&exec);
        }
        Ok(StartExecResponse { pid: started?.child().pid() as u32 })
    })
    .await
}

async fn start(
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    exec: &Id,
    request: StartExecRequest,
) -> Result<Arc<Process>, ProcessError> {
    let system = |action| {
        let (container, process) = (container.id().clone(), exec.as_str().to_owned());
        move |source| ProcessError::System { container, process, action, source }
    };
    let first = container.first_process().ok_or_else(|| super::unknown(container.id(), None))?;
    let namespaces = container.namespaces().await;
    let other_namespaces = match namespaces.as_ref() {
        Some(namespaces) => namespaces.others().len(),
        None => return Err(super::unknown(container.id(), None)),
    };
    let (status, their_status) = pipe().map_err(system("watched"))?;
    let stdin = Stdin { open: request.stdin, once: true };
    let (streams, pipes) = if request.terminal {
        (None, None)
    } else {
        let (streams, pipes) = Streams::pipes(stdin, container.uid()).map_err(system("connected"))?;
        (Some(streams), Some(pipes))
    };
    let ooms = container.cgroup().oom_kills();
    let command = Request::Exec(ExecRequest {
        config: container.config(),
        cgroup: container.cgroup().own(),
        first_pid: first.child().pid(),
        other_namespaces,
        args: request.args,
        env: request.env,
        terminal: request.terminal,
    });
    let launched = {
        let sandbox = sandbox.clone();
        let first = first.child().clone();
        blocking(move || {
            let mut fds = vec![their_status.as_fd(), first.as_fd()];
            if let Some(namespaces) = namespaces.as_ref() {
                fds.push(namespaces.mounts());
                fds.extend(namespaces.others());
            }
            fds.extend(pipes.iter().flatten().map(AsFd::as_fd));
            let launched = launch(&sandbox.containers.reaper, &command, &fds)?;
            // Only the new process's own end must keep the pipe open.
            drop((their_status, pipes));
            if let Err(error) = await_exec(OwnedFd::from(status)) {
                give_up(&launched.child);
                return Err(error);
            }
            Ok::<_, LaunchError>((launched, namespaces))
        })
        .await
    };
    let (launched, namespaces) = launched.map_err(|source| ProcessError::Launch {
        container: container.id().clone(),
        process: exec.clone(),
        source,
    })?;
    let Launched { child, terminal, maker } = launched;
    let streams = match (streams, terminal) {
        (Some(streams), _) => Ok(streams),
        (None, Some(terminal)) => Streams::terminal(terminal, stdin, container.uid()),
        (None, None) => Err(std::io::Error::other("its terminal did not arrive")),
    };
    let streams = match streams {
        Ok(streams) => streams,
        Err(error) => {
            blocking(move || give_up(&child)).await;
            return Err(system("connected")(error));
        }
    };
    let process = Arc::new(Process::new(child, streams));
    tokio::spawn(await_end(container.clone(), process.clone(), ooms));
    container.add_exec(exec, process.clone());
    // Until then the container's root cannot be unmounted.
    tokio::spawn(async move {
        maker.ended().await;
        drop(namespaces);
    });
    sandbox.containers.tell_appearance();
    Ok(process)
}

/// Ends what was made for an exec that cannot be started. Blocks.
fn give_up(child: &Child) {
    if let Err(error) = tree::kill(child.pid(), child.as_fd()) {
        console::error!("an exec that was not started left something behind: {error}");
    }
}

/// Makes the exec's end known. The kernel counts OOM kills for the container as a whole.
async fn await_end(container: Arc<Container>, process: Arc<Process>, ooms_before: u64) {
    let end = process.child().ended().await;
    process.set_exit(ProcessExit {
        code: end.code,
        exited_at_ns: end.at_ns,
        oom_killed: container.cgroup().oom_kills() > ooms_before,
    });
}

/// Answers `RemoveExec`: of one exec, or of all in a container. An exec that still runs is killed, alone: processes that it
/// left in the background live on until the container ends.
pub async fn remove_exec(
    sandbox: &Arc<Sandbox>,
    request: RemoveExecRequest,
) -> Result<RemoveExecResponse, AgentError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let wanted = match request.process_id.as_str() {
        "" => None,
        exec => Some(Id::parse("process_id", exec)?),
    };
    let Some(container) = sandbox.containers.container(&id) else { return Ok(RemoveExecResponse {}) };
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
    process.child().signal(libc::SIGKILL).map_err(|source| ProcessError::System {
        container: container.id().clone(),
        process: exec.as_str().to_owned(),
        action: "killed",
        source,
    })?;
    process.exit().await;
    process.streams().abandon();
    container.forget_exec(exec);
    Ok(())
}
