//! `memory_return`: what share of the memory that a container took and gave up the host has back ten seconds later.
//!
//! By the figures of the pod's control group: before, at most, after. In a guest the kernel keeps what is freed, unless the
//! VM takes it back.

use super::report::{Clock, Row};
use super::side::Side;
use super::statistics::Samples;
use super::{Counts, containerd, pods};
use crate::cri::{Cri, container_config};
use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::LinuxContainerResources;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The metric and its unit.
pub const METRIC: (&str, &str) = ("memory_return", "share");

/// What the container takes, in MiB.
const TAKEN_MIB: u32 = 200;

/// What the pod and its container may take: that, and some room.
const LIMIT_MIB: u32 = 256;

/// When it is looked at what came back. A pod is left alone for as long before it takes anything, so that what came back is
/// not that of its start.
const PAUSE: Duration = Duration::from_secs(10);

/// On each side in turn.
pub fn measure(sides: &mut [Side<'_>; 2], counts: &Counts) -> Vec<Row> {
    let mut shares = [Samples::default(), Samples::default()];
    for round in 0..counts.returns {
        for (side, shares) in sides.iter_mut().zip(&mut shares) {
            if let Some(share) = side.run("giving memory back", |side| take_and_give(side, round)) {
                shares.push(share);
            }
        }
    }
    let [ours, peer] = shares;
    println!("  share given back: isopod {ours}; containerd {peer}");
    let n = ours.count().max(peer.count());
    vec![Row::new(METRIC, (ours.mean(), peer.mean()), containerd::NAME, n, Clock::Wall)]
}

/// The share that the host has back in a fresh pod.
fn take_and_give(side: &Side<'_>, round: usize) -> Result<f64> {
    let name = format!("return-{round}");
    let mut config = pods::config(side, &name)?;
    let limit = || LinuxContainerResources {
        memory_limit_in_bytes: i64::from(LIMIT_MIB) << 20,
        ..LinuxContainerResources::default()
    };
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(limit());
    }
    let pod = side.cri.run_pod_with(config)?;
    let mut container = container_config("taker", "busybox", &["sleep", "100000"]);
    if let Some(linux) = &mut container.linux {
        linux.resources = Some(limit());
    }
    let container = side.cri.run_container(&pod, container)?;
    let share = watch(side.cri, &container, &side.cgroup_of(&name));
    side.cri.remove_pod(&pod.id)?;
    share
}

fn watch(cri: &Cri, container: &str, cgroup: &Path) -> Result<f64> {
    std::thread::sleep(PAUSE);
    let before = bytes(cgroup, "memory.current")?;
    // takes its buffer in one piece, fills all of it by one read, and ends
    cri.shell(container, &format!("dd if=/dev/zero of=/dev/null bs={TAKEN_MIB}M count=1"))?;
    // since the pod is there: nothing else in it takes nearly as much
    let peak = bytes(cgroup, "memory.peak")?;
    std::thread::sleep(PAUSE);
    let after = bytes(cgroup, "memory.current")?;
    println!("  memory: {before:.0} bytes before, {peak:.0} at most, {after:.0} after");
    share(before, peak, after)
}

/// What came back of what was taken.
fn share(before: f64, peak: f64, after: f64) -> Result<f64> {
    // a guest may have had some of it from the host already
    let least = f64::from(TAKEN_MIB << 20) / 2.0;
    ensure!(peak - before > least, "of {TAKEN_MIB} MiB the host gave only {:.0} bytes", peak - before);
    Ok((peak - after) / (peak - before))
}

fn bytes(cgroup: &Path, file: &str) -> Result<f64> {
    let path = cgroup.join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.trim().parse().with_context(|| format!("{} says {text:?}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    #[test]
    fn share_is_of_what_was_taken() {
        assert_eq!(share(40.0 * MIB, 240.0 * MIB, 40.0 * MIB).unwrap(), 1.0);
        assert_eq!(share(40.0 * MIB, 240.0 * MIB, 90.0 * MIB).unwrap(), 0.75);
        assert_eq!(share(40.0 * MIB, 240.0 * MIB, 240.0 * MIB).unwrap(), 0.0);
    }

    #[test]
    fn memory_that_was_never_taken_cannot_come_back() {
        assert!(share(40.0 * MIB, 60.0 * MIB, 40.0 * MIB).is_err());
    }
}
