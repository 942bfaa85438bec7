//! A template made by hand, for cases and the benchmark: what the daemon keeps of one.

use crate::agent::Agent;
use crate::cri::wait_for;
use crate::vmm::Vmm;
use anyhow::{Result, ensure};
use isopod_protocols::vmm::{BootConfig, Request, Response};
use std::fs::File;
use std::time::Duration;

/// What these templates say they were made from.
pub const BUILT_FROM: &str = "cases";

/// A template.
pub struct Template {
    /// Its memory.
    pub memory: File,
    /// The state of its processors and devices.
    pub state: File,
}

impl Template {
    /// Boots the guest that is installed, and saves it when its agent is ready.
    pub fn build(config: BootConfig) -> Result<Self> {
        let (memory, state) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut vmm = Vmm::start()?;
        vmm.boot_template(config, &memory)?;
        Agent::connect(&vmm)?.prepare()?;
        wait_for("connections to end", || Ok((vmm.stats()?.vsock_connections == 0).then_some(())))?;
        vmm.done(&Request::Save { built_from: BUILT_FROM.into() }, &[&state])?;
        let (status, log) = (vmm.ended(Duration::from_secs(20))?, vmm.log()?);
        ensure!(status.code() == Some(0) && log.ends_with("end: saved as a template\n"), "{status} {log}");
        Ok(Self { memory, state })
    }

    /// A VM that goes on where the template was stopped.
    pub fn clone_vm(&self) -> Result<Vmm> {
        let vmm = Vmm::start()?;
        let answer = vmm.restore(BUILT_FROM, &self.memory, &self.state)?;
        ensure!(answer == Response::Done {}, "{answer:?}");
        Ok(vmm)
    }
}
