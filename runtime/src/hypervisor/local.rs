//! Our own VMM, a process per VM that boots its guest.
//!
//! ```text
//!   open files -> start isopod-vmm -> Boot -> ListenVsock -> the agent sends its ready signal
//! ```
//!
//! [`LocalHypervisor`] is a whole [`Hypervisor`]. [`CloningHypervisor`](super::template::CloningHypervisor)
//! stands above it and boots by it what is no clone; nothing here knows of that.

use super::files::Files;
use super::process::Process;
use super::vm::{Launch, LocalVm};
use super::{Booted, Hypervisor, HypervisorError, Vm, VmHandle, VmRecord, VmSpec};
use crate::undo::Undo;
use async_trait::async_trait;
use std::sync::Arc;

/// Starts VMMs. It holds nothing: all that there is of a VM is in its process and in its directory.
#[derive(Debug, Clone, Copy)]
pub struct LocalHypervisor;

impl LocalHypervisor {
    /// As [`Hypervisor::boot`], from files that are open already.
    ///
    /// # Errors
    /// As [`Hypervisor::boot`].
    pub async fn boot_from(
        &self,
        spec: &VmSpec,
        files: &Files,
        undo: &mut Undo,
    ) -> Result<Booted, HypervisorError> {
        let (vm, vsock) = LocalVm::start(&Launch::of_pod(spec), undo).await?;
        let limit = spec.boot_timeout;
        vm.bring_up(limit, vm.boot(&spec.boot_config(), files, vsock, None, limit)).await?;
        // The agent connected itself, and the connection was closed with that.
        Ok(Booted { record: vm.record(), vm, agent: None })
    }
}

#[async_trait]
impl Hypervisor for LocalHypervisor {
    async fn boot(&self, spec: &VmSpec, undo: &mut Undo) -> Result<Booted, HypervisorError> {
        self.boot_from(spec, &Files::open(&spec.kernel, &spec.root_image)?, undo).await
    }

    async fn adopt(&self, id: &str, record: &VmRecord) -> Result<Option<VmHandle>, HypervisorError> {
        let adopted = Process::adopt(record.pid, record.started_at_ticks);
        let failed = |source| HypervisorError::Control { id: id.to_owned(), request: "adopt", source };
        let Some(process) = adopted.map_err(failed)? else { return Ok(None) };
        let vm = LocalVm::new(id, &record.directory, process);
        vm.stats().await?;
        Ok(Some(Arc::new(vm)))
    }
}
