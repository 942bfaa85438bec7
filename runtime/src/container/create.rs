//! CreateContainer, step by step: check, reserve the name, map the layers, let the agent make it, keep the
//! record.
//!
//! Called by `cri`. Nothing of the container's own runs yet.

use super::log_file::{LogFile, LogPath};
use super::record::{MappedLayer, Record, State};
use super::spec::{ContainerSpec, Description};
use super::weight::Weight;
use super::{Container, ContainerError, Containers, Named, request};
use crate::id::{is_valid, new_id};
use crate::sandbox::{Machine, Sandbox};
use crate::undo::{Failed, Undo};
use crate::wall_clock::now_ns;
use isopod_protocols::agent::{CreateContainerRequest, Extent, RemoveContainerRequest};
use isopod_protocols::guest::MAX_CONTAINERS;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::{Instrument, info_span};

impl Containers {
    /// Makes a container; answers it in state Created. Dropping the future undoes everything.
    ///
    /// # Errors
    /// See [`ContainerError`]. Nothing is left of it then.
    #[tracing::instrument(name = "CreateContainer", skip_all, fields(sandbox = sandbox.id))]
    pub async fn create(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        spec: ContainerSpec,
    ) -> Result<Arc<Container>, ContainerError> {
        let (here, left) = oneshot::channel::<()>();
        // The work is a task of its own: a caller that leaves must not stop it between a step and its undo.
        let work = Arc::clone(self).create_or_undo(Arc::clone(sandbox), spec, left);
        let outcome = tokio::spawn(work.in_current_span()).await;
        drop(here);
        outcome.unwrap_or_else(|_| Err(ContainerError::GoingDown(sandbox.id.clone())))
    }

    async fn create_or_undo(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        spec: ContainerSpec,
        mut caller: oneshot::Receiver<()>,
    ) -> Result<Arc<Container>, ContainerError> {
        let entered = sandbox.enter().await?;
        // One at a time per pod, so that a layer is mapped once and not unmapped in between, also not by an undo.
        let _pod = self.pod_lock(&sandbox.id).await;
        let mut undo = Undo::new("CreateContainer");
        let made = self.make(&sandbox, &entered.machine, spec, &mut undo).await;
        let made = made.and_then(|container| match caller.try_recv() {
            Err(oneshot::error::TryRecvError::Closed) => Err(ContainerError::Abandoned(container.id.clone())),
            _ => Ok(container),
        });
        let settled = undo.settle(made).await;
        // Where it failed, without its CPUs. Where not, another container of the pod may have changed since
        // room was made, when this one was not in the table.
        self.place(&sandbox, None);
        settled.map_err(|Failed { cause, leftovers }| match leftovers {
            None => cause,
            Some(leftovers) => ContainerError::Undo { cause: Box::new(cause), leftovers },
        })
    }

    async fn make(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        machine: &Machine,
        spec: ContainerSpec,
        undo: &mut Undo,
    ) -> Result<Arc<Container>, ContainerError> {
        if self.of_sandbox(&sandbox.id).len() >= MAX_CONTAINERS {
            return Err(ContainerError::TooMany(sandbox.id.clone()));
        }
        let id = choose_id(spec.id.clone())?;
        let (mut request, spec) = describe(sandbox, id.clone(), spec).await?;

        let name = name_of(&sandbox.id, &spec.description);
        let (sandbox_id, weight) = (sandbox.id.clone(), Weight::of(&spec.description));
        self.reserve(&name, Named { id: id.clone(), sandbox_id, weight })?;
        let (containers, reserved) = (Arc::clone(self), name.clone());
        undo.push("name", move || async move {
            containers.release(&reserved);
            Ok::<_, ContainerError>(())
        })?;

        self.make_room(sandbox, machine, &id, &spec.resources).await?;

        let attached = self.attach_layers(&sandbox.id, &machine.vm, &spec.root, undo);
        let layers = attached.instrument(info_span!("layers")).await?;
        request.layers = layers.iter().map(extent).collect();

        let (agent, removal) = (machine.agent.clone(), RemoveContainerRequest { container_id: id.clone() });
        undo.push("container in the guest", move || async move { agent.remove_container(removal).await })?;
        let made = machine.agent.create_container(request).instrument(info_span!("agent")).await?;
        undo.done("made in the guest")?;

        let log = match spec.stdio.log_path() {
            Some(path) => Some(Arc::new(open_log(path.clone()).await?)),
            None => None,
        };
        let record = Record {
            version: Record::VERSION,
            sandbox_id: sandbox.id.clone(),
            description: spec.description,
            created_at_ns: now_ns(),
            stdio: spec.stdio,
            layers,
            user: made.user.unwrap_or_default().into(),
            stop_signal: spec.stop_signal,
            resources: spec.resources,
            state: State::Created,
        };
        let container = Arc::new(Container::new(id, name, record, log));
        // No earlier daemon knew it.
        let _ = container.stale_execs.set(());
        self.insert(&container)?;
        let (containers, made) = (Arc::clone(self), Arc::clone(&container));
        undo.push("record", move || async move { containers.forget(&made) })?;
        Ok(container)
    }
}

/// The caller's id, or a random one.
fn choose_id(asked: Option<String>) -> Result<String, ContainerError> {
    match asked {
        Some(id) if is_valid(&id) => Ok(id),
        Some(id) => Err(ContainerError::BadId(id)),
        None => new_id().map_err(|source| ContainerError::File {
            what: "random device",
            path: PathBuf::from("/dev/urandom"),
            source,
        }),
    }
}

/// What the agent is to make; layers are added when they are mapped. Whoever built the image decides how much
/// there is to describe: not on the threads that serve calls.
async fn describe(
    sandbox: &Sandbox,
    id: String,
    spec: ContainerSpec,
) -> Result<(CreateContainerRequest, ContainerSpec), ContainerError> {
    let describing = move || request::request(&id, &spec).map(|request| (request, spec));
    let described = tokio::task::spawn_blocking(describing).await;
    described.map_err(|_| ContainerError::GoingDown(sandbox.id.clone()))?
}

fn extent(layer: &MappedLayer) -> Extent {
    Extent { offset: layer.offset, length: layer.length }
}

/// Container names are unique within a pod and attempt.
pub(super) fn name_of(sandbox_id: &str, description: &Description) -> String {
    format!("{sandbox_id}/{}/{}", description.name, description.attempt)
}

/// On a thread that may block: the disk of the logs may take no writes.
async fn open_log(path: LogPath) -> Result<LogFile, ContainerError> {
    let whole = path.path();
    let opened = tokio::task::spawn_blocking(move || LogFile::open(path)).await;
    let failed =
        |error| ContainerError::File { what: "log file", path: whole, source: io::Error::other(error) };
    Ok(opened.map_err(failed)??)
}
