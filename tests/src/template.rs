//! A template made by hand, for cases and the benchmark: what the daemon keeps of one.

use crate::agent::{Agent, entropy};
use crate::cri::wait_for;
use crate::vmm::Vmm;
use anyhow::{Result, bail, ensure};
use isopod_protocols::vmm::{BootConfig, PageRange, Request, Response, Shape};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

/// What these templates say they were made from.
pub const BUILT_FROM: &str = "cases";

/// A template.
pub struct Template {
    /// Its memory.
    pub memory: File,
    /// The state of its processors and devices.
    pub state: File,
    /// The machine that it was booted as.
    pub shape: Shape,
    root: PathBuf,
}

impl Template {
    /// Boots the guest that is installed, and saves it when its agent is ready.
    pub fn build(config: BootConfig) -> Result<Self> {
        let (vmm, memory, shape) = (Vmm::start()?, tempfile::tempfile()?, config.shape());
        vmm.boot_template(config, &memory)?;
        vmm.wait_for_agent()?;
        Agent::connect(&vmm)?.prepare()?;
        wait_for("connections to end", || Ok((vmm.stats()?.vsock_connections == 0).then_some(())))?;
        Self::save(vmm, shape, memory)
    }

    /// Saves a guest that was booted as a template with this as its memory.
    pub fn save(mut vmm: Vmm, shape: Shape, memory: File) -> Result<Self> {
        let state = tempfile::tempfile()?;
        vmm.done(&Request::Save { built_from: BUILT_FROM.into() }, &[&state])?;
        let (status, log) = (vmm.ended(Duration::from_secs(20))?, vmm.log()?);
        ensure!(status.code() == Some(0) && log.ends_with("end: saved as a template\n"), "{status} {log}");
        Ok(Self { memory, state, shape, root: vmm.root.clone() })
    }

    /// What a clone writes until its agent has answered. What it leaves alone becomes large pages of the template.
    pub fn rehearse(&self) -> Result<Vec<PageRange>> {
        let vmm = self.clone_vm()?;
        Agent::connect(&vmm)?.hello(entropy()?)?;
        match vmm.call(&Request::Rehearsed {}, &[&self.memory])? {
            Response::WorkingSet { pages, .. } => Ok(pages),
            other => bail!("{other:?}"),
        }
    }

    /// A VM that goes on where the template was stopped.
    pub fn clone_vm(&self) -> Result<Vmm> {
        let mut vmm = Vmm::start()?;
        vmm.root.clone_from(&self.root);
        let answer = vmm.restore(BUILT_FROM, self.shape, &self.memory, &self.state)?;
        ensure!(answer == Response::Done {}, "{answer:?}");
        Ok(vmm)
    }
}
