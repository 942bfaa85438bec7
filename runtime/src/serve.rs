//! The daemon as a story: open the house, take back what an earlier daemon left, serve, end.

use crate::cgroup::{self, PodCgroup};
use crate::check;
use crate::config::Config;
use crate::container::{ContainerError, Containers};
use crate::cri::Node;
use crate::cri::container_spec::{self, ContainerConfigError};
use crate::cri::server::{self, ServerError};
use crate::host_users::HostUsers;
use crate::hypervisor::LocalHypervisor;
use crate::hypervisor::template::{CloningHypervisor, Recipe, Templates};
use crate::image::{ImageConfiguration, ImageError, Images};
use crate::network::{NetworkError, Networks};
use crate::pod::Pods;
use crate::preparation::{self, Agents};
use crate::private;
use crate::sandbox::{Host, SandboxError, Sandboxes, network_config};
use crate::scratch::{Scratch, ScratchError};
use crate::store::StoreError;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Time that calls in flight have to finish when the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the daemon could not start, or gave up.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// This machine cannot run pods.
    #[error("this machine cannot run pods (isopod check tells more):{0}")]
    Unfit(String),
    /// The sandboxes.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The containers.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The scratch disks.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The records of templates or of host users.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The container of a template's rehearsal.
    #[error("container of a rehearsal: {0}")]
    Rehearsal(#[from] ContainerConfigError),
    /// The networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A directory of the daemon.
    #[error("directory {path}: {source}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signal(io::Error),
}

/// Runs the daemon until SIGTERM or SIGINT. Pods run on after it.
///
/// # Errors
/// What kept it from serving.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let findings = check::examine(&config);
    for finding in &findings {
        tracing::debug!("{finding:?}");
    }
    if !check::passed(&findings) {
        return Err(ServeError::Unfit(check::complaints(&findings)));
    }
    raise_open_files();
    let config = Arc::new(config);
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    for directory in [&config.daemon.state_dir, &config.daemon.root_dir] {
        // Records hold what pods are told, images what strangers wrote: nobody but us has to read them.
        let made = private::directory(directory);
        made.map_err(|source| ServeError::Directory { path: directory.clone(), source })?;
    }
    // The socket first: it tells whether another daemon owns the state.
    let listener = server::bind(&config.daemon.socket).await?;
    let scratch = Arc::new(Scratch::new(config.daemon.root_dir.join("scratch"))?);
    let templates = templates(&config, &scratch).await?;
    let (sandboxes, events) = Sandboxes::new(Arc::clone(&config), host(&config, &templates, scratch)?)?;
    let containers = Containers::open(&config.daemon.state_dir, Arc::clone(&sandboxes), events)?;
    sandboxes.restore().await?;
    containers.restore()?;
    let directory = config.daemon.root_dir.join("images");
    let images = Images::open(&directory, &config.image, &config.registry, converters(&config))?;
    ask_for_templates(&config, &templates);
    let pods = Pods::new(Arc::clone(&sandboxes), Arc::clone(&containers));
    let node = Arc::new(Node { config, sandboxes, containers, pods, images, templates });
    tracing::info!(socket = %node.config.daemon.socket.display(), "serving");
    let (stopping, mut stopped) = watch::channel(());
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; pods run on");
        stopping.send_replace(());
    };
    let overdue = async move {
        // An error says that the server has ended by itself, and this future is not waited for any more.
        let _ = stopped.changed().await;
        tokio::time::sleep(DRAIN).await;
        tracing::warn!(
            "calls were still in flight after {} s; the next daemon finishes them",
            DRAIN.as_secs()
        );
    };
    tokio::select! {
        served = server::serve(listener, node, stop) => Ok(served?),
        () = overdue => Ok(()),
    }
}

/// What sandboxes are made of on this node.
fn host(config: &Config, templates: &Arc<Templates>, scratch: Arc<Scratch>) -> Result<Host, ServeError> {
    Ok(Host {
        hypervisor: Arc::new(CloningHypervisor::new(LocalHypervisor, Arc::clone(templates))),
        networks: Arc::new(Networks::new(network_config(config))?),
        scratch,
        users: HostUsers::open(&config.daemon.state_dir, config.vm.pod_uids())?,
        cgroup_root: cgroup::ROOT.into(),
    })
}

/// The cgroup of layer converters; none where the host gives none. It bounds their memory unless the
/// configuration wants no bound or files of images are memory themselves and would count: then each converter
/// has its own limits only.
fn converters(config: &Config) -> Option<PathBuf> {
    let (image, root) = (&config.image, &config.daemon.root_dir);
    // a file system of its own may be mounted for images
    let system = statfs(&root.join("images")).or_else(|_| statfs(root));
    let in_memory = system.is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC);
    let memory = (image.converter_memory_mib != 0 && !in_memory).then_some(image.converter_memory_mib << 20);
    if memory.is_none() {
        tracing::info!(in_memory, "layer converters have no bound of memory together");
    }
    let made = PodCgroup::of_converters(cgroup::ROOT.as_ref(), &image.converter_cgroup_parent, memory);
    let told =
        |error| tracing::warn!(%error, "layer converters have no cgroup, and no bound of memory together");
    made.map(|cgroup| cgroup.path().to_owned()).map_err(told).ok()
}

/// What an earlier daemon left of templates, but those that no handler has a use for any more.
async fn templates(config: &Config, scratch: &Arc<Scratch>) -> Result<Arc<Templates>, ServeError> {
    let (state_dir, uid) = (&config.daemon.state_dir, config.vm.template_uid());
    let container = container_spec::plain(ImageConfiguration::default(), &[preparation::NO_COMMAND])?;
    let agents = Agents { scratch: Arc::clone(scratch), scratch_mib: config.vm.scratch_mib, container };
    let templates = Templates::open(state_dir, cgroup::ROOT.into(), uid, Box::new(agents)).await?;
    let handlers: Vec<_> = config.handler_names().into_iter().filter_map(|name| config.vm_of(name)).collect();
    templates.keep_only(|recipe| handlers.iter().any(|handler| recipe.serves(handler)));
    Ok(templates)
}

/// Has those made that the first pods will need: of every handler, in its own size.
fn ask_for_templates(config: &Config, templates: &Arc<Templates>) {
    let handlers = config.handler_names().into_iter().filter_map(|name| config.vm_of(name));
    handlers.filter_map(|handler| Recipe::node_wide(&handler)).for_each(|recipe| templates.ask_for(&recipe));
}

/// Shells give a process 1024 open files, which 200 pods pass. VMMs, which inherit the limit, set their own. Where more is
/// refused, what the daemon may have must do.
fn raise_open_files() {
    const OPEN_FILES: u64 = 1 << 20;
    if setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).is_err()
        && let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
