//! Making a template, as a story:
//!
//! ```text
//!   directory, cgroup -> memory and state, empty -> isopod-vmm: BootTemplate -> the agent is ready, and prepares
//!     -> nobody talks to the guest any more -> Save; the VMM ends -> both files are sealed -> holder -> record
//! ```
//!
//! Called by [`super::Templates`] in the background. Every step pushes its undo; a failure leaves nothing behind, and no pod
//! waits for any of it. Its rehearsal follows when it may be cloned already: see [`super::rehearsal`].

use super::super::files::{self, Files};
use super::super::vm::{Launch, LocalVm};
use super::super::{HypervisorError, Vm, VmHandle};
use super::holder::{self, Template};
use super::key::Key;
use super::rehearse::RehearsalError;
use super::sealed::{Sealed, new_file};
use super::store::TemplateStore;
use crate::cgroup::CgroupError;
use crate::hostile_text::Tail;
use crate::store::StoreError;
use crate::undo::{Failed, Injected, Undo};
use async_trait::async_trait;
use isopod_protocols::vmm::PageRange;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Limit of a boot that gives way to all pods.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// Limit of each request to the VM, which gives way to all pods.
const PATIENCE: Duration = Duration::from_secs(60);

/// Limit and pause of waiting until nobody talks to the guest any more.
const QUIET_LIMIT: Duration = PATIENCE;
const QUIET_PAUSE: Duration = Duration::from_millis(10);

/// Limit of saving, which copies what little is not in the memory file.
const SAVE_LIMIT: Duration = Duration::from_secs(60);

/// Room for a template's state, bytes: what its VMM writes.
const STATE_BYTES: u64 = 4 << 20;

/// Limit of the VMM's end after it saved.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Why a template could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The VM.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The guest booted and cannot be saved.
    #[error("guest of {id} {what}{tail}")]
    Guest {
        /// The VM.
        id: String,
        /// What it did or did not do.
        what: String,
        /// The last lines of its console.
        tail: Tail,
    },
    /// One of the files it is made from was replaced meanwhile.
    #[error(
        "one of {vmm}, {kernel} and {root_image} was replaced while a template was made: the next one is of the new files"
    )]
    Changed {
        /// The VMM's program.
        vmm: PathBuf,
        /// Guest kernel.
        kernel: PathBuf,
        /// Guest root.
        root_image: PathBuf,
    },
    /// A file or directory of the template.
    #[error("template's {what} {path}: {source}")]
    File {
        /// Which one.
        what: &'static str,
        /// Its path, or that of the directory it belongs to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The record on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// Has the agent of a guest get ready what every pod will use. Who talks to agents stands above this module, so it is given
/// to it.
#[async_trait]
pub trait Preparation: Send + Sync {
    /// Size of the largest file that a guest changes in its rehearsal, in bytes.
    fn largest_file(&self) -> u64;

    /// Asks the agent of `vm`; when it answers, it has let go of its connection. Every call has at least
    /// `patience`.
    ///
    /// # Errors
    /// The guest cannot become a template then.
    async fn prepare(
        &self,
        id: &str,
        vm: VmHandle,
        patience: Duration,
    ) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Has a clone do what every pod's guest does, up to a first container. Its agent is reached by the
    /// connection `agent`, and `root_image` serves as its image. Every call has at least `patience`.
    ///
    /// # Errors
    /// Whatever broke the rehearsal off.
    async fn rehearse(
        &self,
        id: &str,
        vm: VmHandle,
        agent: UnixStream,
        root_image: File,
        patience: Duration,
    ) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// Makes templates: for real, or in tests of the table.
#[async_trait]
pub trait Make: Send + Sync {
    /// Makes the template of `key`, and calls it `name`.
    async fn make(&self, name: &str, key: &Key) -> Result<Arc<Template>, BuildError>;

    /// Finds what every clone of `template` writes, which is never nothing. `weight` is the share of
    /// processors of whoever does it (`cpu.weight`).
    async fn rehearse(&self, template: &Template, weight: u32) -> Result<Vec<PageRange>, RehearsalError>;
}

/// Makes templates for real.
pub struct Builder {
    /// What there is of them on the host.
    pub store: Arc<TemplateStore>,
    /// Host user and group of what makes and keeps them.
    pub uid: u32,
    /// The agents' side.
    pub preparation: Box<dyn Preparation>,
}

#[async_trait]
impl Make for Builder {
    async fn make(&self, name: &str, key: &Key) -> Result<Arc<Template>, BuildError> {
        let mut undo = Undo::new("BuildTemplate");
        let made = self.steps(name, key, &mut undo).await;
        // What stays is in the log already, and the next daemon tries to remove it.
        undo.settle(made).await.map_err(Failed::into_cause)
    }

    async fn rehearse(&self, template: &Template, weight: u32) -> Result<Vec<PageRange>, RehearsalError> {
        self.find_working_set(template, weight).await
    }
}

impl Builder {
    async fn steps(&self, name: &str, key: &Key, undo: &mut Undo) -> Result<Arc<Template>, BuildError> {
        let recipe = &key.recipe;
        let files = Files::open(&recipe.kernel, &recipe.root_image)?;
        unchanged(key)?;
        let directory = self.store.make_directory(name, undo)?;
        let cgroup = self.store.make_cgroup(name, undo)?;
        let failed = |what| {
            let path = directory.clone();
            move |source| BuildError::File { what, path, source }
        };
        let bytes = key.memory_bytes();
        let memory = new_file("isopod-template-memory", bytes).map_err(failed("memory"))?;
        let state = new_file("isopod-template-state", 0).map_err(failed("state"))?;

        let id = format!("template-{name}");
        let launch = Launch {
            id: &id,
            directory: &directory,
            cgroup: cgroup.as_deref(),
            uid: self.uid,
            largest_file: self.preparation.largest_file().max(STATE_BYTES),
            vmm: &recipe.vmm,
            patience: PATIENCE,
        };
        let started = LocalVm::start(&launch, undo).await?;
        self.store.give_way(name);
        self.boot_and_save(&launch, key, &files, started, (&memory, &state), undo).await?;

        let memory = Sealed::seal(memory).map_err(failed("memory cannot be sealed"))?;
        let state = Sealed::seal(state).map_err(failed("state cannot be sealed"))?;
        unchanged(key)?;
        undo.done("seal")?;
        let log = files::log(&directory)?;
        self.store.come_as_usual(name);
        let holder =
            holder::start(launch.vmm, launch.uid, launch.cgroup, log.as_fd(), (&memory, &state)).await;
        self.store.give_way(name);
        let holder = holder?;
        let template = Arc::new(Template::new(name, key, memory, state, holder));
        let killed = Arc::clone(&template);
        undo.push("holder", || async move {
            killed.kill().await;
            Ok::<_, io::Error>(())
        })?;
        self.store.record(&template, undo)?;
        Ok(template)
    }

    /// From a VMM that has started to its end, which leaves a guest in the two files.
    async fn boot_and_save(
        &self,
        launch: &Launch<'_>,
        key: &Key,
        files: &Files,
        (vm, vsock): (Arc<LocalVm>, UnixListener),
        (memory, state): (&File, &File),
        undo: &mut Undo,
    ) -> Result<(), BuildError> {
        let boot = vm.boot(&key.recipe.boot, files, vsock, Some(memory.as_fd()), BOOT_LIMIT);
        vm.bring_up(BOOT_LIMIT, boot).await?;
        undo.done("boot")?;
        let prepared = self.preparation.prepare(launch.id, Arc::clone(&vm) as VmHandle, PATIENCE).await;
        if let Err(error) = prepared {
            return Err(useless(launch.id, &vm, format!("did not prepare: {error}")).await);
        }
        quiet(launch.id, &vm).await?;
        undo.done("prepare")?;
        vm.save(&key.built_from(), state, SAVE_LIMIT).await?;
        if timeout(END_LIMIT, vm.ended()).await.is_err() {
            tracing::warn!(vm = launch.id, "its vmm did not end after it saved, and is killed");
            vm.kill().await;
        }
        Ok(undo.done("save")?)
    }
}

/// Waits until the guest has no connection: one that was saved would be open in every clone.
async fn quiet(id: &str, vm: &LocalVm) -> Result<(), BuildError> {
    let wait = async {
        loop {
            match vm.stats().await?.vsock_connections {
                0 => return Ok(()),
                _ => sleep(QUIET_PAUSE).await,
            }
        }
    };
    match timeout(QUIET_LIMIT, wait).await {
        Ok(done) => done,
        Err(_) => Err(useless(id, vm, format!("kept a connection for {} s", QUIET_LIMIT.as_secs())).await),
    }
}

async fn useless(id: &str, vm: &LocalVm, what: String) -> BuildError {
    BuildError::Guest { id: id.to_owned(), what, tail: vm.last_words().await }
}

/// The files are what they were when the template was asked for.
pub(super) fn unchanged(key: &Key) -> Result<(), BuildError> {
    let recipe = &key.recipe;
    match recipe.key() {
        Ok(now) if now == *key => Ok(()),
        // One that is gone has changed as well; the next boot says which.
        _ => Err(BuildError::Changed {
            vmm: recipe.vmm.clone(),
            kernel: recipe.kernel.clone(),
            root_image: recipe.root_image.clone(),
        }),
    }
}
