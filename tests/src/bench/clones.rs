//! `vm_clone_to_agent`: from the start of the VMM's process to the agent's first answer, in a clone beside a VM that boots.
//!
//! Both have one processor and 128 MiB, and both are asked the first question that the daemon asks. The template is made
//! before anything is timed.

use super::boot::{Contender, race};
use super::report::{Clock, Row};
use super::{Counts, timed};
use crate::agent::{Agent, entropy};
use crate::template::Template;
use crate::vmm::{Vmm, small};
use anyhow::{Result, anyhow};

/// How the reports call the VM that boots.
pub const PEER: &str = "Isopod, booting";

/// Clones and boots in turn.
pub fn measure(counts: &Counts, clock: Clock) -> Vec<Row> {
    let template = Template::build(small(&[]));
    // as the daemon does with each of its templates
    let template = template.and_then(|template| template.rehearse().map(|_| template));
    let clone = || match &template {
        Ok(template) => answered(|| template.clone_vm()),
        Err(error) => Err(anyhow!("{error:#}")),
    };
    let boot = || {
        answered(|| {
            let vmm = Vmm::start()?;
            vmm.boot_to_agent(small(&[]))?;
            Ok(vmm)
        })
    };
    let contenders = [Contender::new("clone", clone), Contender::new("boot", boot)];
    vec![race("vm_clone_to_agent", contenders, PEER, counts, clock)]
}

/// Milliseconds until the agent of a new VM has answered.
fn answered(make: impl FnOnce() -> Result<Vmm>) -> Result<f64> {
    let entropy = entropy()?;
    let (took, _vmm) = timed(|| {
        let vmm = make()?;
        Agent::connect(&vmm)?.hello(entropy)?;
        Ok(vmm)
    })?;
    Ok(took)
}
