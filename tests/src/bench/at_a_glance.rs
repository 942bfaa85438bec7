//! A container pod and a VM pod side by side: the few figures that the demo ends with.
//!
//! The benchmark in short, with its own means: some starts of each in turn, then the memory of one idle pod of each.

use super::containerd::{Containerd, Snapshotter};
use super::memory::{self, Memory, Shared};
use super::side::{Side, settle};
use super::statistics::Samples;
use super::{pods, timed};
use crate::cri::Cri;
use anyhow::{Context, Result};

/// Starts of each that count. The first of each does not: it finds everything cold.
const STARTS: usize = 3;

/// What was seen of one side.
struct Seen {
    starts: Samples,
    idle_pod_mib: f64,
    shared: Shared,
}

/// Starts the peer, measures both, and says what came out: a table, and how it was measured.
///
/// # Errors
/// Where one of the figures cannot be had.
pub fn compare() -> Result<String> {
    let (isopod, peer) = (Cri::connect()?, Containerd::start(Snapshotter::Overlayfs)?);
    let sides = [Side::containerd(&peer), Side::isopod(&isopod)?];
    for side in &sides {
        side.cri.pull("busybox").with_context(|| side.name)?;
        side.wait_for_template()?;
    }
    let starts = starts(&sides)?;
    let idle = [pods::start(&sides[0], "idle")?.0, pods::start(&sides[1], "idle")?.0];
    std::thread::sleep(memory::UNTIL_IDLE);
    let mut seen = Vec::new();
    for ((side, pod), starts) in sides.iter().zip(&idle).zip(starts) {
        let memory = Memory::of(side, std::slice::from_ref(pod))?;
        let idle_pod_mib = memory.own.mean().context("no pod was looked at")?;
        seen.push(Seen { starts, idle_pod_mib, shared: memory.shared });
        side.cri.remove_pod(&pod.id)?;
    }
    let [container, vm] = <[Seen; 2]>::try_from(seen).ok().context("both sides")?;
    table(&container, &vm).context("no start was timed")
}

/// Milliseconds of some starts, in turns.
fn starts(sides: &[Side<'_>; 2]) -> Result<[Samples; 2]> {
    let mut starts = [Samples::default(), Samples::default()];
    for round in 0..=STARTS {
        for (side, starts) in sides.iter().zip(&mut starts) {
            let (took, (pod, _)) = timed(|| pods::start(side, &format!("round-{round}")))?;
            side.cri.remove_pod(&pod.id)?;
            settle();
            if round > 0 {
                starts.push(took);
            }
        }
    }
    Ok(starts)
}

fn table(container: &Seen, vm: &Seen) -> Option<String> {
    let start = |seen: &Seen| Some(format!("{:.0} ms", seen.starts.median()?));
    let memory = |seen: &Seen| format!("{:.1} MiB", seen.idle_pod_mib);
    let rows = [
        ["", "container pod", "VM pod"].map(str::to_owned),
        ["start".to_owned(), start(container)?, start(vm)?],
        ["memory when idle".to_owned(), memory(container), memory(vm)],
    ];
    let mut text = String::new();
    for [what, container, vm] in &rows {
        text += &format!("{what:<18}{container:>16}{vm:>12}\n");
    }
    let (peer, ours) = (container.shared, vm.shared);
    let how = format!(
        "Measured in this run, beside containerd and runc: a start is RunPodSandbox, CreateContainer and StartContainer \
         of the same image by the same client, the median of {}, in turns; memory is the proportional set size of all \
         host processes of a pod with page tables, without what there is once per node, which is {:.1} MiB of \
         containerd, and {:.1} MiB of Isopod with {:.1} MiB of templates.",
        container.starts.count().min(vm.starts.count()),
        peer.daemon,
        ours.daemon,
        ours.templates,
    );
    Some(format!("{text}\n{how}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(starts: &[f64], idle_pod_mib: f64, daemon: f64, templates: f64) -> Seen {
        Seen { starts: starts.iter().copied().collect(), idle_pod_mib, shared: Shared { daemon, templates } }
    }

    #[test]
    fn table_shows_both_and_tells_what_they_share() {
        let container = seen(&[2000.0, 2100.0, 2900.0], 10.7, 60.0, 0.0);
        let text = table(&container, &seen(&[900.0, 800.0, 950.0], 3.25, 31.5, 40.0)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("2100 ms") && lines[1].ends_with("900 ms"), "{text}");
        assert!(lines[2].contains("10.7 MiB") && lines[2].ends_with("3.2 MiB"), "{text}");
        assert!(
            text.contains("median of 3") && text.contains("31.5 MiB of Isopod with 40.0 MiB of templates"),
            "{text}"
        );
    }

    #[test]
    fn without_a_start_there_is_no_table() {
        assert!(table(&seen(&[], 1.0, 1.0, 0.0), &seen(&[1.0], 1.0, 1.0, 0.0)).is_none());
    }
}
