//! One rehearsal: a clone of a template does what every pod's guest does, and what it wrote is the working
//! set.
//!
//! ```text
//!   isopod-vmm -> the template's group gets its share of processors
//!     -> Restore -> Hello ... StartContainer -> Rehearsed -> the VM is killed, whatever came of it
//! ```
//!
//! Called by [`super::rehearsal`] through [`super::build::Make`], one at a time. It must not decide whether
//! there is another one.

use super::super::files::Files;
use super::super::vm::{Launch, LocalVm, WorkingSet};
use super::super::{HypervisorError, VmHandle};
use super::build::{Builder, unchanged};
use super::holder::Template;
use crate::hostile_text::Tail;
use crate::undo::{Injected, Undo};
use isopod_protocols::vmm::PageRange;
use std::error::Error;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Limit of a rehearsal, and of each request in it.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Limit of asking a VM that did not rehearse in time for its console.
const TAIL_LIMIT: Duration = Duration::from_secs(10);

/// Why a rehearsal failed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The clone, or its VMM.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The clone runs, and a pod cannot be made in it.
    #[error("clone {id} could not do what a pod's guest does: {source}{tail}")]
    Pod {
        /// The VM.
        id: String,
        /// What its agent or the host said.
        source: Box<dyn Error + Send + Sync>,
        /// The last lines of its console.
        tail: Tail,
    },
    /// It took too long.
    #[error("clone {id} did not rehearse within {seconds} s{tail}")]
    Timeout {
        /// The VM.
        id: String,
        /// The limit.
        seconds: u64,
        /// The last lines of its console.
        tail: Tail,
    },
    /// It wrote nothing, which no guest that runs can do.
    #[error("rehearsal of template {0} found no page that clones write")]
    Empty(String),
    /// The template is of no use any more.
    #[error(
        "one of the files that template {0} was made from was replaced: no pod is cloned from it any more, and none rehearses"
    )]
    Outdated(String),
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl Builder {
    /// Finds what clones of `template` write. `weight` is the share of processors that its group has
    /// meanwhile.
    pub(super) async fn find_working_set(
        &self,
        template: &Template,
        weight: u32,
    ) -> Result<Vec<PageRange>, RehearsalError> {
        let mut undo = Undo::new("Rehearsal");
        self.store.come_as_usual(&template.name);
        let found = self.rehearse_and_look(template, weight, &mut undo).await;
        // The clone was for this only. What of it stays is in the log, and in the template's cgroup.
        drop(undo.run().await);
        self.store.give_way(&template.name);
        found
    }

    async fn rehearse_and_look(
        &self,
        template: &Template,
        weight: u32,
        undo: &mut Undo,
    ) -> Result<Vec<PageRange>, RehearsalError> {
        let recipe = &template.key.recipe;
        let files = Files::open(&recipe.kernel, &recipe.root_image)?;
        // A clone reads its root from the file that its template was made with.
        unchanged(&template.key).map_err(|_| RehearsalError::Outdated(template.name.clone()))?;
        let id = format!("template-{}", template.name);
        let (directory, cgroup) = (self.store.directory(&template.name), self.store.cgroup(&template.name));
        let launch = Launch {
            id: &id,
            directory: &directory,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.path()),
            uid: self.uid,
            largest_file: self.preparation.largest_file(),
            vmm: &recipe.vmm,
            patience: LIMIT,
        };
        let (vm, vsock) = LocalVm::start(&launch, undo).await?;
        self.store.weigh(&template.name, weight);
        let pages = match timeout(LIMIT, self.live_and_look(&id, template, files, &vm, vsock)).await {
            Ok(found) => found?,
            Err(_) => {
                let tail = last_words(&vm).await;
                return Err(RehearsalError::Timeout { id, seconds: LIMIT.as_secs(), tail });
            }
        };
        undo.done("look")?;
        match pages.is_empty() {
            true => Err(RehearsalError::Empty(template.name.clone())),
            false => Ok(pages),
        }
    }

    async fn live_and_look(
        &self,
        id: &str,
        template: &Template,
        files: Files,
        vm: &Arc<LocalVm>,
        vsock: UnixListener,
    ) -> Result<Vec<PageRange>, RehearsalError> {
        let agent = vm.bring_up(LIMIT, vm.restore(&template.snapshot(), &files, vsock, LIMIT)).await?;
        let handle = Arc::clone(vm) as VmHandle;
        let lived = self.preparation.rehearse(id, handle, agent, files.root_image, LIMIT).await;
        if let Err(source) = lived {
            return Err(RehearsalError::Pod { id: id.to_owned(), source, tail: last_words(vm).await });
        }
        let WorkingSet { pages, large_pages, refused_large_pages } =
            vm.working_set(template.memory.as_fd(), template.key.memory_bytes()).await?;
        if refused_large_pages > 0 {
            tracing::warn!(
                template = template.name,
                large_pages,
                refused_large_pages,
                "host makes no large pages of a template: clones fault its guest kernel in page by page"
            );
        }
        Ok(pages)
    }
}

async fn last_words(vm: &LocalVm) -> Tail {
    timeout(TAIL_LIMIT, vm.last_words()).await.unwrap_or_default()
}
