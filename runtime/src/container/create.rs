//! CreateContainer, as a story: check, reserve the name, map the layers, let the agent make it, keep the record.
//!
//! Called by `cri`. Nothing of the container's own runs yet.

use super::log_file::{LogFile, LogPath};
use super::record::{ImageNames, MappedLayer, Record, State};
use super::spec::{self, Parts, security_context};
use super::weight::Weight;
use super::{Container, ContainerError, Containers, Named, volumes};
use crate::id::new_id;
use crate::image::Image;
use crate::sandbox::{Machine, Sandbox};
use crate::undo::{Failed, Undo};
use crate::wall_clock::now_ns;
use isopod_protocols::agent::{CreateContainerRequest, Extent, PidNamespace, RemoveContainerRequest, User};
use isopod_protocols::cri::{
    ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, SupplementalGroupsPolicy,
};
use isopod_protocols::guest::MAX_CONTAINERS;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::{Instrument, info_span};

/// What kubelet asks for.
#[derive(Debug)]
pub struct Wish {
    /// In the CRI's words.
    pub config: ContainerConfig,
    /// What stops it, if that is not left to the image; a number of Linux's.
    pub stop_signal: Option<i32>,
}

impl Containers {
    /// Makes a container; answers it in state Created. Dropping the future undoes everything.
    ///
    /// # Errors
    /// See [`ContainerError`]. Nothing is left of it then.
    #[tracing::instrument(name = "CreateContainer", skip_all, fields(sandbox = sandbox.id))]
    pub async fn create(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        wish: Wish,
        image: Image,
    ) -> Result<Arc<Container>, ContainerError> {
        let (here, left) = oneshot::channel::<()>();
        // The work is a task of its own: a caller that leaves must not stop it between a step and its undo.
        let work = Arc::clone(self).create_or_undo(Arc::clone(sandbox), wish, image, left);
        let outcome = tokio::spawn(work.in_current_span()).await;
        drop(here);
        outcome.unwrap_or_else(|_| Err(ContainerError::GoingDown(sandbox.id.clone())))
    }

    async fn create_or_undo(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        wish: Wish,
        image: Image,
        mut caller: oneshot::Receiver<()>,
    ) -> Result<Arc<Container>, ContainerError> {
        let entered = sandbox.enter().await?;
        // One at a time per pod, so that a layer is mapped once and not unmapped in between, also not by an undo.
        let _pod = self.pod_lock(&sandbox.id).await;
        let mut undo = Undo::new("CreateContainer");
        let made = self.make(&sandbox, &entered.machine, wish, image, &mut undo).await;
        let made = made.and_then(|container| match caller.try_recv() {
            Err(oneshot::error::TryRecvError::Closed) => Err(ContainerError::Abandoned(container.id.clone())),
            _ => Ok(container),
        });
        undo.settle(made).await.map_err(|Failed { cause, leftovers }| {
            // Without its CPUs.
            self.place(&sandbox, None);
            match leftovers {
                None => cause,
                Some(leftovers) => ContainerError::Undo { cause: Box::new(cause), leftovers },
            }
        })
    }

    async fn make(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        machine: &Machine,
        Wish { config, stop_signal }: Wish,
        image: Image,
        undo: &mut Undo,
    ) -> Result<Arc<Container>, ContainerError> {
        let id = new_id().map_err(|source| ContainerError::File {
            what: "random device",
            path: PathBuf::from("/dev/urandom"),
            source,
        })?;
        if self.of_sandbox(&sandbox.id).len() >= MAX_CONTAINERS {
            return Err(ContainerError::TooMany(sandbox.id.clone()));
        }
        let log_path = log_path(sandbox, &config)?;
        // Whoever built the image decides how much there is to describe: not on the threads that serve calls.
        let describing = {
            let (id, sandbox) = (id.clone(), Arc::clone(sandbox));
            move || describe(&id, &sandbox, &config, &image).map(|request| (request, config, image))
        };
        let described = tokio::task::spawn_blocking(describing).await;
        let described = described.map_err(|_| ContainerError::GoingDown(sandbox.id.clone()))?;
        let (mut request, config, image) = described?;

        let name = name_of(sandbox, &config)?;
        let (sandbox_id, weight) = (sandbox.id.clone(), Weight::of(&config));
        self.reserve(&name, Named { id: id.clone(), sandbox_id, weight })?;
        let (containers, reserved) = (Arc::clone(self), name.clone());
        undo.push("name", move || async move {
            containers.release(&reserved);
            Ok::<_, ContainerError>(())
        })?;

        let resources = config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
        self.make_room(sandbox, machine, &id, &resources).await?;

        let attached = self.attach_layers(&sandbox.id, &machine.vm, &image.layers, undo);
        let layers = attached.instrument(info_span!("layers")).await?;
        request.layers = layers.iter().map(extent).collect();

        let (agent, removal) = (machine.agent.clone(), RemoveContainerRequest { container_id: id.clone() });
        undo.push("container in the guest", move || async move { agent.remove_container(removal).await })?;
        let made = machine.agent.create_container(request).instrument(info_span!("agent")).await?;
        undo.done("made in the guest")?;

        let log = match &log_path {
            Some(path) => Some(Arc::new(open_log(path.clone()).await?)),
            None => None,
        };
        let record = Record {
            sandbox_id: sandbox.id.clone(),
            image: names(&config, &image),
            created_at_ns: now_ns(),
            log_path: log_path.map(|path| path.path()),
            layers,
            user: made.user.unwrap_or_default().into(),
            stop_signal,
            resources,
            state: State::Created,
            config,
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

/// What the agent is to make; layers are added when they are mapped.
fn describe(
    id: &str,
    sandbox: &Sandbox,
    config: &ContainerConfig,
    image: &Image,
) -> Result<CreateContainerRequest, ContainerError> {
    let parts = Parts { id, container: config, sandbox: &sandbox.config, image: &image.config };
    let spec = spec::build(parts)?;
    let spec = serde_json::to_vec(&spec).map_err(ContainerError::Encode)?;
    let default = LinuxContainerSecurityContext::default();
    let context = security_context(config).unwrap_or(&default);
    let namespaces = context.namespace_options.clone().unwrap_or_default();
    let (pid_namespace, pid_target) = match namespaces.pid() {
        NamespaceMode::Pod => (PidNamespace::Pod, String::new()),
        NamespaceMode::Target => (PidNamespace::Target, namespaces.target_id),
        NamespaceMode::Container => (PidNamespace::Container, String::new()),
        NamespaceMode::Node => return Err(ContainerError::HostNamespace("hostPID")),
    };
    Ok(CreateContainerRequest {
        container_id: id.to_owned(),
        spec,
        layers: Vec::new(),
        user: Some(user(context, image)?),
        pid_namespace: pid_namespace.into(),
        pid_target,
        stdin: config.stdin,
        terminal: config.tty,
        stdin_once: config.stdin_once,
        env: spec::environment(parts),
        volumes: volumes::of_container(&image.config, &config.mounts)?,
    })
}

/// The user that the first process runs as: the pod's word, else the image's. Names are resolved in the guest, where the
/// image's files are.
fn user(context: &LinuxContainerSecurityContext, image: &Image) -> Result<User, ContainerError> {
    let own = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => Some(id("run_as_user", uid.value)?.to_string()),
        (None, "") => None,
        (None, name) => Some(name.to_owned()),
    };
    let gid = context.run_as_group.as_ref().map(|gid| id("run_as_group", gid.value)).transpose()?;
    if gid.is_some() && own.is_none() {
        return Err(ContainerError::GroupWithoutUser);
    }
    Ok(User {
        user: own.unwrap_or_else(|| image.config.user.clone()),
        gid,
        supplemental_groups: context
            .supplemental_groups
            .iter()
            .map(|gid| id("supplemental_groups", *gid))
            .collect::<Result<_, _>>()?,
        strict_groups: context.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict,
    })
}

fn id(field: &'static str, value: i64) -> Result<u32, ContainerError> {
    // The kernel takes all ones for "leave it as it is".
    let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    id.ok_or(ContainerError::BadId { field, value })
}

fn extent(layer: &MappedLayer) -> Extent {
    Extent { offset: layer.offset, length: layer.length }
}

fn names(config: &ContainerConfig, image: &Image) -> ImageNames {
    let spec = config.image.clone().unwrap_or_default();
    let asked = [spec.user_specified_image, spec.image].into_iter().find(|name| !name.is_empty());
    let id = image.id.to_string();
    ImageNames {
        asked: asked.unwrap_or_else(|| id.clone()),
        reference: image.repo_digests.first().cloned().unwrap_or_else(|| id.clone()),
        id,
        stop_signal: Some(image.config.stop_signal.clone()).filter(|signal| !signal.is_empty()),
    }
}

/// Container names are unique within a pod and attempt.
fn name_of(sandbox: &Sandbox, config: &ContainerConfig) -> Result<String, ContainerError> {
    let metadata = config.metadata.as_ref().filter(|m| !m.name.is_empty()).ok_or(ContainerError::NoName)?;
    Ok(format!("{}/{}/{}", sandbox.id, metadata.name, metadata.attempt))
}

/// The log's place below the pod's log directory, and nowhere else.
fn log_path(sandbox: &Sandbox, config: &ContainerConfig) -> Result<Option<LogPath>, ContainerError> {
    let (Some(directory), false) = (sandbox.log_directory(), config.log_path.is_empty()) else {
        return Ok(None);
    };
    let path = LogPath::new(directory, Path::new(&config.log_path));
    path.map(Some).ok_or_else(|| ContainerError::BadLogPath(config.log_path.clone()))
}

/// On a thread that may block: the disk of the logs may take no writes.
async fn open_log(path: LogPath) -> Result<LogFile, ContainerError> {
    let whole = path.path();
    let opened = tokio::task::spawn_blocking(move || LogFile::open(path)).await;
    let failed =
        |error| ContainerError::File { what: "log file", path: whole, source: io::Error::other(error) };
    Ok(opened.map_err(failed)??)
}
