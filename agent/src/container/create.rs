//! Creates a container: root, volumes, user, spec, mount targets, cgroup, streams, process; everything up to the exec of its command.
//!
//! Whatever fails, [`super::remove()`] takes back all that was made: it tolerates what is not there.

use super::launch::{Launched, launch};
use super::namespaces::Namespaces;
use super::spec::{Completed, Facts, SpecError, complete};
use super::{Container, ContainerError, STATES, Step, remove, targets};
use crate::cgroup::{huge_pages, layout};
use crate::child::environment;
use crate::child::filter::{self, Filter};
use crate::child::message::{ContainerRequest, Request};
use crate::console;
use crate::error::AgentError;
use crate::id::Id;
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::stdio::{Stdin, Streams};
use crate::storage::user;
use crate::task::{blocking, to_the_end};
use isopod_protocols::agent::*;
use oci_spec::runtime::Spec;
use std::fs;
use std::io::pipe;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// Answers `CreateContainer`.
pub async fn create(
    sandbox: &Arc<Sandbox>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, AgentError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let (container, mut step) = sandbox.containers.reserve(&id).map_err(ContainerError::from)?;
    let sandbox = sandbox.clone();
    to_the_end(async move {
        let made = make(&sandbox, &container, &mut step, request).await;
        if made.is_err() {
            match remove::release(&sandbox, &container).await {
                Ok(()) => sandbox.containers.forget(&id),
                // It stays in the table, so that RemoveContainer can go on.
                Err(error) => console::error!("container {id} left something behind: {error}"),
            }
        }
        Ok(CreateContainerResponse { user: Some(made?) })
    })
    .await
}

async fn make(
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    step: &mut Step,
    request: CreateContainerRequest,
) -> Result<ResolvedUser, AgentError> {
    let root = make_root(sandbox, container, &request).await?;
    let asked = request.user.clone().unwrap_or_default();
    let user = user::resolve(&root, &asked)?;
    // Open until the process has joined it: the path below names this descriptor.
    let joined = pid_namespace(sandbox, container, &request).await?;
    let facts = Facts {
        home: user::home(&root, user.uid)?,
        env: request.env.clone(),
        root: root.clone(),
        user: user.clone(),
        pid_namespace: joined.as_ref().map(descriptor_path),
        cgroup: layout::container_in_spec(container.id()),
        terminal: request.terminal,
    };
    let Completed { spec, environment, seccomp, resources } =
        complete(&request.spec, &facts).map_err(ContainerError::from)?;
    let filter = seccomp.as_ref().map(Filter::compile).transpose();
    let filter = filter.map_err(|error| ContainerError::from(SpecError::from(error)))?;
    let spec = prepare_targets(container, root, spec).await?;
    let own_cgroup = container.cgroup();
    own_cgroup
        .make()
        .and_then(|()| own_cgroup.restrict_devices(&resources))
        .and_then(|()| own_cgroup.limit(&resources))
        .map_err(ContainerError::from)?;
    if let Err(error) = huge_pages::offer(&resources) {
        // The container has fewer of them then, as on a node that has set none aside.
        console::error!("huge pages cannot be offered to container {}: {error}", container.id());
    }
    write_bundle(container, &spec, &environment, filter.as_ref())?;

    let process = make_process(sandbox, container, step, &request, user.uid).await?;
    let namespaces =
        Namespaces::of(process.child(), &spec).map_err(container.system("namespaces", "opened"))?;
    *container.namespaces.write().await = Some(namespaces);
    let process = Arc::new(process);
    if container.first.set((process.clone(), user.uid)).is_err() {
        unreachable!("a container is created once, under its step");
    }
    sandbox.containers.board.created(container.id()).map_err(ContainerError::from)?;
    tokio::spawn(await_end(sandbox.clone(), container.clone(), process));
    sandbox.containers.tell_appearance();
    Ok(user)
}

async fn make_root(
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    request: &CreateContainerRequest,
) -> Result<PathBuf, AgentError> {
    let (sandbox, container) = (sandbox.clone(), container.clone());
    let (layers, volumes) = (request.layers.clone(), request.volumes.clone());
    blocking(move || {
        let storage = sandbox.storage()?;
        let root = storage.create_root(container.id(), &layers)?;
        storage.create_volumes(container.id(), &volumes)?;
        Ok(root)
    })
    .await
}

/// Answers the spec with mounts whose places are there.
async fn prepare_targets(
    container: &Container,
    root: PathBuf,
    mut spec: Spec,
) -> Result<Spec, ContainerError> {
    let prepared = blocking(move || targets::prepare(&root, &mut spec).map(|()| spec)).await;
    prepared.map_err(|source| ContainerError::Target { id: container.id.clone(), source })
}

/// The pid namespace to join; none for one of its own.
async fn pid_namespace(
    sandbox: &Arc<Sandbox>,
    container: &Container,
    request: &CreateContainerRequest,
) -> Result<Option<OwnedFd>, ContainerError> {
    match request.pid_namespace() {
        PidNamespace::Container => Ok(None),
        PidNamespace::Pod => {
            sandbox.containers.pid_namespace.join(sandbox).await.map(Some).map_err(container.launch_failed())
        }
        PidNamespace::Target => {
            let target = Id::parse("pid_target", &request.pid_target).ok();
            let process = target.and_then(|target| sandbox.containers.process(&target, None));
            let namespace = process.and_then(|process| super::pid_namespace::of(process.child()));
            namespace.map(Some).ok_or_else(|| ContainerError::PidTarget {
                id: container.id.clone(),
                target: request.pid_target.clone(),
            })
        }
    }
}

/// A path by which other processes of the guest reach a descriptor of the agent.
fn descriptor_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}

fn write_bundle(
    container: &Container,
    spec: &Spec,
    environment: &[Vec<u8>],
    filter: Option<&Filter>,
) -> Result<(), ContainerError> {
    let failed = || container.system("bundle", "written");
    fs::create_dir_all(container.bundle()).map_err(failed())?;
    let json = serde_json::to_vec(spec).map_err(|error| failed()(error.into()))?;
    if let Some(filter) = filter {
        fs::write(container.bundle().join(filter::FILE), filter.encode()).map_err(failed())?;
    }
    fs::write(container.bundle().join(environment::FILE), environment::encode(environment))
        .map_err(failed())?;
    fs::write(container.config(), json).map_err(failed())
}

async fn make_process(
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    step: &mut Step,
    request: &CreateContainerRequest,
    uid: u32,
) -> Result<Process, ContainerError> {
    let (status, their_status) = pipe().map_err(container.system("status pipe", "made"))?;
    let stdin = Stdin { open: request.stdin, once: request.stdin_once };
    let connected = || container.system("streams", "connected");
    let (streams, pipes) = if request.terminal {
        (None, None)
    } else {
        let (streams, pipes) = Streams::pipes(stdin, uid).map_err(connected())?;
        (Some(streams), Some(pipes))
    };
    let order = Request::Container(ContainerRequest {
        id: container.id.as_str().to_owned(),
        states: PathBuf::from(STATES),
        bundle: container.bundle(),
        terminal: request.terminal,
    });
    let launched = {
        let sandbox = sandbox.clone();
        blocking(move || {
            let mut fds = vec![their_status.as_fd()];
            fds.extend(pipes.iter().flatten().map(AsFd::as_fd));
            launch(&sandbox.containers.reaper, &order, &fds)
        })
        .await
    };
    let Launched { child, terminal, .. } = launched.map_err(container.launch_failed())?;
    let streams = match (streams, terminal) {
        (Some(streams), _) => streams,
        (None, Some(terminal)) => Streams::terminal(terminal, stdin, uid).map_err(connected())?,
        (None, None) => return Err(connected()(std::io::Error::other("its terminal did not arrive"))),
    };
    step.status = Some(status.into());
    Ok(Process::new(child, streams))
}

/// Makes the end of a container's first process known, after the rest of the container has been killed: in a shared pid
/// namespace the kernel does not do that.
async fn await_end(sandbox: Arc<Sandbox>, container: Arc<Container>, process: Arc<Process>) {
    let end = process.child().ended().await;
    if let Err(error) = container.cgroup().kill() {
        console::error!("what is left of container {} cannot be killed: {error}", container.id());
    }
    let exit = ProcessExit {
        code: end.code,
        exited_at_ns: end.at_ns,
        oom_killed: container.cgroup().oom_kills() > 0,
    };
    sandbox.containers.board.ended(container.id(), exit);
    process.set_exit(exit);
}
