//! Fifty pods at once: `pod_start_50`, and what they cost when they do nothing: `idle_pod_memory`, `daemon_memory`, `idle_cpu`.
//!
//! All are asked for in the same moment, each by a thread of its own over one connection, as kubelet does after a node's
//! restart. The time is that from the first question to the last answer. Then they are left alone.

use super::report::{Clock, Row};
use super::side::{Side, settle};
use super::{Counts, containerd, idle_cpu, memory, pods, timed};
use crate::cri::Pod;
use anyhow::{Result, anyhow};
use memory::Memory;

/// What is measured of a crowd, and its units.
pub const STARTED: [(&str, &str); 1] = [("pod_start_50", "ms")];

/// The same, and what is measured of a crowd that does nothing: bytes have no clock, and a minute of nothing no instructions.
pub const STARTED_AND_IDLE: [(&str, &str); 4] =
    [STARTED[0], ("idle_pod_memory", "MiB"), ("daemon_memory", "MiB"), ("idle_cpu", "ms/min")];

/// One side's figures; those that are null could not be measured.
#[derive(Default)]
struct Figures {
    makespan_ms: Option<f64>,
    pod_mib: Option<f64>,
    daemon_mib: Option<f64>,
    cpu_ms_per_minute: Option<f64>,
}

/// A crowd on one side, then on the other: two at once would be in each other's way.
pub fn measure(sides: &mut [Side<'_>; 2], counts: &Counts, clock: Clock) -> Vec<Row> {
    let [ours, peer] = sides.each_mut().map(|side| {
        let mut figures = Figures::default();
        side.run("a crowd of pods", |side| gather(side, counts.crowd, clock, &mut figures));
        figures
    });
    let [makespan, pod, daemon, cpu] = STARTED_AND_IDLE;
    let row = |metric, n, figure: fn(&Figures) -> Option<f64>| {
        Row::new(metric, (figure(&ours), figure(&peer)), containerd::NAME, n, clock)
    };
    let mut rows = vec![row(makespan, 1, |figures| figures.makespan_ms)];
    if clock == Clock::Wall {
        rows.push(row(pod, counts.crowd, |figures| figures.pod_mib));
        rows.push(row(daemon, counts.crowd, |figures| figures.daemon_mib));
        rows.push(row(cpu, counts.crowd, |figures| figures.cpu_ms_per_minute));
    }
    rows
}

/// What is known is in `figures` also where something fails later.
fn gather(side: &Side<'_>, count: usize, clock: Clock, figures: &mut Figures) -> Result<()> {
    // what only a first pod meets is not the crowd's
    let (first, _) = pods::start(side, "crowd-first")?;
    side.cri.remove_pod(&first.id)?;
    settle();
    let (took, pods) = timed(|| start(side, "crowd", 0..count))?;
    println!("  {}: {count} pods at once took {took:.0} ms", side.name);
    figures.makespan_ms = Some(took);
    if clock == Clock::Wall {
        std::thread::sleep(memory::UNTIL_IDLE);
        let memory = Memory::of(side, &pods)?;
        println!("  {}: {memory}", side.name);
        figures.pod_mib = memory.of_a_pod();
        figures.daemon_mib = Some(memory.shared.daemon);
        figures.cpu_ms_per_minute = idle_cpu::of_pods(side, &pods)?.mean();
    }
    remove(side, &pods)
}

/// Starts pods of these numbers, all at once. Where some fail, all are waited for and the first failure is told.
pub fn start(side: &Side<'_>, name: &str, numbers: std::ops::Range<usize>) -> Result<Vec<Pod>> {
    at_once(numbers, |number| Ok(pods::start(side, &format!("{name}-{number}"))?.0))
}

fn remove(side: &Side<'_>, pods: &[Pod]) -> Result<()> {
    at_once(pods, |pod| Ok(side.cri.remove_pod(&pod.id)?)).map(drop)
}

/// Does a piece of work for each item, each in a thread of its own; answers come in the order of the items.
fn at_once<I: Send, T: Send>(
    items: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let outcomes: Vec<Result<T>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect();
        outcomes.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;
    use std::sync::Barrier;

    #[test]
    fn all_are_at_work_at_the_same_time() {
        let barrier = Barrier::new(3);
        let done = at_once([1, 2, 3], |item| {
            // returns only when all three are here
            barrier.wait();
            Ok(item * 10)
        });
        assert_eq!(done.unwrap(), [10, 20, 30]);
    }

    #[test]
    fn one_failure_fails_all() {
        let done = at_once([1, 2, 3], |item| {
            ensure!(item != 2, "no {item}");
            Ok(item)
        });
        assert_eq!(done.unwrap_err().to_string(), "no 2");
    }
}
