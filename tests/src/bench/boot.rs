//! `vm_boot_to_agent`: from the start of the VMM's process to the first answer of the agent in its guest.
//!
//! `isopod-vmm` against QEMU microvm: same kernel, same command line, same guest root, one processor, 128 MiB. The agent
//! answers the same way on both: it connects to the host's ready port when it serves.

use super::qemu_guest::{self, QemuGuest};
use super::report::{Clock, Row};
use super::side::{Side, settle};
use super::statistics::Samples;
use super::{Counts, pods, timed};
use crate::vmm::{Vmm, small};
use anyhow::{Result, anyhow};

/// Boots on each side before any figure counts.
const WARM_UP: usize = 2;

/// One of two ways to a guest.
pub struct Contender<'a> {
    name: &'static str,
    boot: Box<dyn Fn() -> Result<f64> + 'a>,
    times: Samples,
    broken: bool,
}

impl<'a> Contender<'a> {
    /// A way that has not failed yet; `boot` answers the milliseconds it took.
    pub fn new(name: &'static str, boot: impl Fn() -> Result<f64> + 'a) -> Self {
        Self { name, boot: Box::new(boot), times: Samples::default(), broken: false }
    }

    /// Boots once; a failure is told, and is the last.
    fn boot(&mut self, counts: bool) {
        if self.broken {
            return;
        }
        match (self.boot)() {
            Ok(took) if counts => self.times.push(took),
            Ok(_) => {}
            Err(error) => {
                eprintln!("error: {}, boot: {error:#}", self.name);
                self.broken = true;
            }
        }
        settle();
    }
}

/// Boots guests on each side in turn.
pub fn measure(isopod: &Side<'_>, counts: &Counts, clock: Clock) -> Vec<Row> {
    let qemu = command_line(isopod).and_then(|line| QemuGuest::prepare(&line));
    let boot_qemu = || match &qemu {
        Ok(guest) => guest.boot(),
        Err(error) => Err(anyhow!("{error:#}")),
    };
    let contenders = [Contender::new("isopod-vmm", boot_isopod), Contender::new("qemu", boot_qemu)];
    vec![race("vm_boot_to_agent", contenders, qemu_guest::NAME, counts, clock)]
}

/// Has both take turns.
pub fn race(
    metric: &str,
    mut contenders: [Contender<'_>; 2],
    peer_name: &str,
    counts: &Counts,
    clock: Clock,
) -> Row {
    for round in 0..WARM_UP + counts.boots {
        for contender in &mut contenders {
            contender.boot(round >= WARM_UP);
        }
    }
    let [ours, peer] = contenders.map(|contender| {
        println!("  {}: {} ms", contender.name, contender.times);
        contender.times
    });
    let n = ours.count().max(peer.count());
    Row::new((metric, "ms"), (ours.median(), peer.median()), peer_name, n, clock)
}

fn boot_isopod() -> Result<f64> {
    let (took, _vmm) = timed(|| {
        let vmm = Vmm::start()?;
        vmm.boot_to_agent(small(&[]))?;
        Ok(vmm)
    })?;
    Ok(took)
}

/// The kernel command line of Isopod's guests, as one of them has it.
fn command_line(isopod: &Side<'_>) -> Result<String> {
    let (pod, container) = pods::start(isopod, "command-line")?;
    let line = isopod.cri.shell(&container, "cat /proc/cmdline")?;
    isopod.cri.remove_pod(&pod.id)?;
    Ok(line)
}
