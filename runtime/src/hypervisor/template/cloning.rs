//! A pod's VM is a clone of a template where there is one, and boots where there is none.
//!
//! ```text
//!   open files -> a template of this configuration?
//!      yes -> start isopod-vmm -> Restore -> the agent takes a connection
//!              | anything goes wrong: the pod boots, and the template is dropped if it is at fault
//!      no ---> LocalHypervisor boots -> ask for a template
//! ```
//!
//! Called by `sandbox` through [`Hypervisor`]. It must never fail a pod because of a template, nor wait for
//! one to be made.

use super::super::files::Files;
use super::super::vm::{Launch, LocalVm};
use super::super::{Booted, Hypervisor, HypervisorError, LocalHypervisor, Vm, VmHandle, VmRecord, VmSpec};
use super::Templates;
use super::clones::Lease;
use super::holder::Template;
use super::key::Key;
use crate::undo::Undo;
use async_trait::async_trait;
use std::sync::Arc;
use tracing::{Instrument, info_span};

/// Makes VMs as clones, and by another hypervisor what is none.
pub struct CloningHypervisor {
    plain: LocalHypervisor,
    templates: Arc<Templates>,
}

/// A clone that did not run.
struct FailedClone {
    template: Arc<Template>,
    error: HypervisorError,
}

impl CloningHypervisor {
    /// One whose pods are clones of these templates, or boot by `plain`.
    pub fn new(plain: LocalHypervisor, templates: Arc<Templates>) -> Self {
        Self { plain, templates }
    }

    /// A clone of that template, or why it did not run.
    async fn clone_template(
        &self,
        spec: &VmSpec,
        template: Arc<Template>,
        files: &Files,
        undo: &mut Undo,
    ) -> Result<Result<Booted, FailedClone>, HypervisorError> {
        let (vm, vsock) = LocalVm::start(&Launch::of_pod(spec), undo).await?;
        let limit = spec.boot_timeout;
        let snapshot = template.snapshot();
        let restored = vm.bring_up(limit, vm.restore(&snapshot, files, vsock, limit));
        match restored.instrument(info_span!("restore")).await {
            Ok(agent) => {
                let record = VmRecord { template: Some(template.name.clone()), ..vm.record() };
                let lease = self.templates.cloned(&template);
                follow(Arc::clone(&vm), template, lease);
                Ok(Ok(Booted { vm, record, agent: Some(agent) }))
            }
            Err(error) => {
                tracing::warn!(template = template.name, %error, "clone failed: the pod boots");
                self.templates.clone_failed(&template, &error);
                // Before the next one is born in its place. The undo stack kills it once more, which is no
                // error.
                vm.kill().await;
                Ok(Err(FailedClone { template, error }))
            }
        }
    }
}

#[async_trait]
impl Hypervisor for CloningHypervisor {
    async fn boot(&self, spec: &VmSpec, undo: &mut Undo) -> Result<Booted, HypervisorError> {
        let _starting = self.templates.pod_starts();
        let files = Files::open(&spec.kernel, &spec.root_image)?;
        let Some(key) = Key::of(spec, &files) else { return self.plain.boot_from(spec, &files, undo).await };
        let failed = match self.templates.ready(&key) {
            Some(template) => match self.clone_template(spec, template, &files, undo).await? {
                Ok(booted) => return Ok(booted),
                Err(failed) => Some(failed),
            },
            None => None,
        };
        self.templates.missed();
        let booted = self.plain.boot_from(spec, &files, undo).await?;
        if let Some(FailedClone { template, error }) = failed {
            self.templates.booted_instead(&template, &spec.id, &error);
        }
        // Only now: a configuration that does not boot makes no template either, and this pod comes first.
        self.templates.ask(&key);
        Ok(booted)
    }

    async fn adopt(&self, id: &str, record: &VmRecord) -> Result<Option<VmHandle>, HypervisorError> {
        let adopted = self.plain.adopt(id, record).await?;
        let lease = record.template.as_deref().and_then(|template| self.templates.clone_of(template));
        if let (Some(vm), Some(lease)) = (&adopted, lease) {
            count(Arc::clone(vm), lease);
        }
        Ok(adopted)
    }
}

/// Counts a clone until it ends.
fn count(vm: VmHandle, lease: Lease) {
    tokio::spawn(async move {
        vm.ended().await;
        drop(lease);
    });
}

/// Gives a clone what it will write, while its pod waits for its network, and counts it until it ends.
fn follow(vm: Arc<LocalVm>, template: Arc<Template>, lease: Lease) {
    // Here, so that it belongs to the start of the pod.
    let span = info_span!("populate");
    tokio::spawn(async move {
        populate(&vm, template).instrument(span).await;
        vm.ended().await;
        drop(lease);
    });
}

/// A guest that gets nothing asks page by page, which is counted.
async fn populate(vm: &LocalVm, template: Arc<Template>) {
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
}
