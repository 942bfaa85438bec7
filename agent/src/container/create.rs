//! Creates a container: root, volumes, user, spec, mount targets, cgroup, streams, process; everything up to
//! the exec of its command.
//!
//! Whatever fails, [`super::remove()`] takes back all that was made: it tolerates what is not there.

use super::error::ContainerError;
use super::launch::{Launched, launch};
use super::namespaces::Namespaces;
use super::spec::{Completed, Facts, SpecError, complete};
use super::table::{Container, Containers, LIBRARY_DIRECTORIES, Step};
use super::{pid_namespace, remove, targets};
use crate::cgroup::{huge_pages, layout};
use crate::child::environment;
use crate::child::filter::{self, Filter};
use crate::child::message::{ChildRequest, ContainerRequest};
use crate::console;
use crate::event_loop::{blocking, to_the_end};
use crate::id::Id;
use crate::process::Process;
use crate::reaper::Reaper;
use crate::stdio::{PendingStreams, Stdin};
use crate::storage::{Storage, user};
use isopod_protocols::agent::{
    CreateContainerRequest, CreateContainerResponse, PidNamespace, ProcessExit, ResolvedUser,
};
use oci_spec::runtime::{LinuxResources, Spec};
use std::fs;
use std::io::pipe;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// Answers `CreateContainer`.
pub async fn create(
    containers: &Arc<Containers>,
    storage: &Arc<Storage>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, ContainerError> {
    let id = Id::parse("container_id", &request.container_id)?;
    let (container, mut step) = containers.reserve(&id)?;
    let (containers, storage) = (containers.clone(), storage.clone());
    to_the_end(async move {
        let made = make(&containers, &storage, &container, &mut step, request).await;
        if made.is_err() {
            match remove::release(Some(storage), &container).await {
                Ok(()) => containers.forget(&id),
                // It stays in the table, so that RemoveContainer can go on.
                Err(error) => console::error!("container {id} left something behind: {error}"),
            }
        }
        Ok(CreateContainerResponse { user: Some(made?) })
    })
    .await
}

async fn make(
    containers: &Arc<Containers>,
    storage: &Arc<Storage>,
    container: &Arc<Container>,
    step: &mut Step,
    request: CreateContainerRequest,
) -> Result<ResolvedUser, ContainerError> {
    let root = make_root(storage, container, &request).await?;
    let asked = request.user.clone().unwrap_or_default();
    let user = user::resolve(&root, &asked)?;
    // Open until the process has joined it: the path below names this descriptor.
    let joined = joined_pid_namespace(containers, container, &request).await?;
    let facts = Facts {
        home: user::home(&root, user.uid)?,
        env: request.env.clone(),
        root: root.clone(),
        user: user.clone(),
        pid_namespace: joined.as_ref().map(descriptor_path),
        cgroup: layout::container_in_spec(container.id()),
        terminal: request.terminal,
    };
    let Completed { spec, environment, seccomp, resources } = complete(&request.spec, &facts)?;
    let filter = seccomp.as_ref().map(Filter::compile).transpose().map_err(SpecError::from)?;
    let spec = prepare_targets(container, root, spec).await?;
    make_cgroup(container, &resources)?;
    write_bundle(container, &spec, &environment, filter.as_ref())?;

    let process = make_process(&containers.reaper, container, step, &request, user.uid).await?;
    let namespaces =
        Namespaces::of(process.handle(), &spec).map_err(container.system("namespaces", "opened"))?;
    let process = Arc::new(process);
    container.made(process.clone(), user.uid, namespaces).await;
    containers.states.created(container.id())?;
    tokio::spawn(await_end(containers.clone(), container.clone(), process));
    containers.tell_appearance();
    Ok(user)
}

/// Makes the container's cgroup, with all that limits it.
fn make_cgroup(container: &Container, resources: &LinuxResources) -> Result<(), ContainerError> {
    let group = container.cgroup();
    group.make()?;
    group.restrict_devices(resources)?;
    group.limit(resources)?;
    if let Err(error) = huge_pages::offer(resources) {
        // The container has fewer of them then, as on a node that has set none aside.
        console::error!("huge pages cannot be offered to container {}: {error}", container.id());
    }
    Ok(())
}

async fn make_root(
    storage: &Arc<Storage>,
    container: &Container,
    request: &CreateContainerRequest,
) -> Result<PathBuf, ContainerError> {
    let (storage, id) = (storage.clone(), container.id().clone());
    let (layers, volumes) = (request.layers.clone(), request.volumes.clone());
    blocking(move || {
        let root = storage.create_root(&id, &layers)?;
        storage.create_volumes(&id, &volumes)?;
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
    prepared.map_err(|source| ContainerError::Target { id: container.id().clone(), source })
}

/// The pid namespace to join; none for one of its own.
async fn joined_pid_namespace(
    containers: &Containers,
    container: &Container,
    request: &CreateContainerRequest,
) -> Result<Option<OwnedFd>, ContainerError> {
    match request.pid_namespace() {
        PidNamespace::Container => Ok(None),
        PidNamespace::Pod => {
            let joined = containers.pid_namespace.join(&containers.reaper).await;
            joined.map(Some).map_err(container.launch_failed())
        }
        PidNamespace::Target => {
            let target = Id::parse("pid_target", &request.pid_target).ok();
            let process = target.and_then(|target| containers.process(&target, None));
            let namespace = process.and_then(|process| pid_namespace::of(process.handle()));
            namespace.map(Some).ok_or_else(|| ContainerError::PidTarget {
                id: container.id().clone(),
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
    reaper: &Reaper,
    container: &Container,
    step: &mut Step,
    request: &CreateContainerRequest,
    uid: u32,
) -> Result<Process, ContainerError> {
    let (status, their_status) = pipe().map_err(container.system("status pipe", "made"))?;
    let stdin = Stdin { open: request.stdin, once: request.stdin_once };
    let (streams, pipes) = PendingStreams::new(request.terminal, stdin, uid)
        .map_err(container.system("streams", "connected"))?;
    let order = ChildRequest::Container(ContainerRequest {
        id: container.id().as_str().to_owned(),
        states: PathBuf::from(LIBRARY_DIRECTORIES),
        bundle: container.bundle(),
        terminal: request.terminal,
    });
    let reaper = reaper.clone();
    let launched = blocking(move || {
        let mut fds = vec![their_status.as_fd()];
        fds.extend(pipes.iter().flatten().map(AsFd::as_fd));
        launch(&reaper, &order, &fds)
    });
    let Launched { process, terminal, .. } = launched.await.map_err(container.launch_failed())?;
    let streams = streams.complete(terminal).map_err(container.system("streams", "connected"))?;
    step.status = Some(status.into());
    Ok(Process::new(process, streams))
}

/// Makes the end of a container's first process known, after the rest of the container has been killed: in a
/// shared pid namespace the kernel does not do that.
async fn await_end(containers: Arc<Containers>, container: Arc<Container>, process: Arc<Process>) {
    let end = process.handle().ended().await;
    if let Err(error) = container.cgroup().kill() {
        console::error!("what is left of container {} cannot be killed: {error}", container.id());
    }
    let exit = ProcessExit {
        code: end.code,
        exited_at_ns: end.at_ns,
        oom_killed: container.cgroup().oom_kills() > 0,
    };
    containers.states.ended(container.id(), exit);
    process.set_exit(exit);
}
