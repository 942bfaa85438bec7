//! Our own VMM, a process per VM: pods' VMs are clones of a template where there is one, and boot where there is none.
//!
//! ```text
//!   open files -> a template of this configuration?
//!      yes -> start isopod-vmm -> Restore -----------------------> the agent answers
//!              | anything goes wrong: the pod boots, and the template is dropped if it is at fault
//!      no ---> start isopod-vmm -> Boot -> ListenVsock ----------> the agent knocks -> ask for a template
//! ```
//!
//! Called by `sandbox` through [`Hypervisor`]. It must never fail a pod because of a template, nor wait for one to be made.

use super::files::Files;
use super::process::Process;
use super::template::{Key, Template, Templates};
use super::vm::{LocalVm, Place};
use super::{Hypervisor, HypervisorError, Vm, VmConfig, VmHandle, VmRecord};
use crate::undo::Undo;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tracing::{Instrument, info_span};

/// Starts VMMs.
pub struct LocalHypervisor {
    templates: Arc<Templates>,
}

impl LocalHypervisor {
    /// One whose pods are clones of these templates.
    pub fn new(templates: Arc<Templates>) -> Self {
        Self { templates }
    }

    /// A clone of that template, or why it did not run.
    async fn clone_template(
        &self,
        config: &VmConfig,
        template: Arc<Template>,
        files: &Files,
        undo: &mut Undo,
    ) -> Result<Result<VmHandle, FailedClone>, HypervisorError> {
        let (vm, vsock) = LocalVm::start(&place(config), undo).await?;
        let limit = config.boot_timeout;
        let restored = vm.bring_up(limit, vm.restore(&template, files, vsock, limit));
        match restored.instrument(info_span!("restore")).await {
            Ok(()) => {
                vm.count(Some(self.templates.cloned(&template)));
                populate(Arc::clone(&vm), template);
                Ok(Ok(vm))
            }
            Err(error) => {
                tracing::warn!(template = template.name, %error, "clone failed: the pod boots");
                self.templates.clone_failed(&template, &error);
                // Before the next one is born in its place. The undo stack kills it once more, which is no error.
                vm.kill().await;
                Ok(Err(FailedClone { template, error }))
            }
        }
    }

    async fn boot_cold(
        &self,
        config: &VmConfig,
        files: &Files,
        undo: &mut Undo,
    ) -> Result<VmHandle, HypervisorError> {
        let (vm, vsock) = LocalVm::start(&place(config), undo).await?;
        let limit = config.boot_timeout;
        vm.bring_up(limit, vm.boot(&config.boot_config(), files, vsock, None, limit)).await?;
        Ok(vm)
    }
}

/// A clone that did not run.
struct FailedClone {
    template: Arc<Template>,
    error: HypervisorError,
}

/// Gives a clone what it will write, while its pod waits for its network. A guest that gets nothing asks page
/// by page, which is counted.
fn populate(vm: Arc<LocalVm>, template: Arc<Template>) {
    let work = async move {
        let pages = template.working_set();
        let populated = tokio::select! {
            // A VM that is gone needs no pages.
            biased;
            () = vm.ended() => return,
            populated = vm.populate(&pages) => populated,
        };
        if let Err(error) = populated {
            template.clones().not_populated();
            tracing::warn!(template = template.name, %error, "clone is not populated: it faults page by page");
        }
    };
    tokio::spawn(work.instrument(info_span!("populate")));
}

fn place(config: &VmConfig) -> Place<'_> {
    Place {
        id: &config.id,
        directory: &config.directory,
        cgroup: config.cgroup.as_deref(),
        uid: config.uid,
        largest_file: config.largest_file,
        vmm: &config.vmm,
        patience: Duration::ZERO,
    }
}

#[async_trait]
impl Hypervisor for LocalHypervisor {
    async fn boot(&self, config: &VmConfig, undo: &mut Undo) -> Result<VmHandle, HypervisorError> {
        let _starting = self.templates.pod_starts();
        let files = Files::open(&config.kernel, &config.root_image)?;
        let Some(key) = Key::of(config, &files) else { return self.boot_cold(config, &files, undo).await };
        let failed = match self.templates.ready(&key) {
            Some(template) => match self.clone_template(config, template, &files, undo).await? {
                Ok(vm) => return Ok(vm),
                Err(failed) => Some(failed),
            },
            None => None,
        };
        self.templates.missed();
        let booted = self.boot_cold(config, &files, undo).await?;
        if let Some(FailedClone { template, error }) = failed {
            self.templates.booted_instead(&template, &config.id, &error);
        }
        // Only now: a configuration that does not boot makes no template either, and this pod comes first.
        self.templates.ask(&key);
        Ok(booted)
    }

    async fn adopt(&self, id: &str, record: &VmRecord) -> Result<Option<VmHandle>, HypervisorError> {
        let found = Process::find(record.pid, record.started_at_ticks);
        let failed = |source| HypervisorError::Control { id: id.to_owned(), request: "adopt", source };
        let Some(process) = found.map_err(failed)? else { return Ok(None) };
        let vm = LocalVm::new(id, &record.directory, process);
        vm.stats().await?;
        vm.count(record.template.as_deref().and_then(|template| self.templates.clone_of(template)));
        Ok(Some(Arc::new(vm)))
    }
}
