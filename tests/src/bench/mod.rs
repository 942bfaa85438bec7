//! The benchmark: Isopod and its peers, measured in the same node in the same run.
//!
//! ```text
//! isopod-bench          on the machine: for each clock boot a node, run this same program in it, gather the rows
//!   +-> measure         in the node: pods, layers, memory, crowds, against containerd + runc by the same CRI client;
//!                       a VM alone, against QEMU microvm with the same kernel and root; a clone, against a boot
//! ```
//!
//! Nothing here knows Isopod from within. What fails is told and leaves a null in the report; the rest is measured all the same.

pub mod at_a_glance;
pub mod boot;
pub mod clones;
pub mod containerd;
pub mod crowd;
pub mod goals;
pub mod idle_cpu;
pub mod layers;
pub mod many;
pub mod memory;
pub mod memory_return;
pub mod network;
pub mod plugins;
pub mod pods;
pub mod processes;
pub mod pull;
pub mod pull_memory;
pub mod qemu_guest;
pub mod report;
pub mod side;
pub mod statistics;

use crate::cri::Cri;
use anyhow::{Context, Result};
use containerd::{Containerd, Snapshotter};
use report::{Clock, Row};
use side::Side;
use std::path::Path;
use std::time::Instant;

/// A part of the benchmark that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// `vm_boot_to_agent`.
    Boot,
    /// `vm_clone_to_agent`.
    Clones,
    /// `pod_start`, `pod_start_without_cni`, `exec`, `pod_stop`.
    Pods,
    /// `layer_read`: by the wall's clock only. Counted instructions say nothing of copied memory.
    Layers,
    /// `memory_return`: by the wall's clock only, as bytes have none.
    Return,
    /// `net_throughput`, `net_latency`.
    Net,
    /// `pull_largest`, `pull_layers_per_second`, `pull_peak_memory`.
    Pull,
    /// `pod_start_50`; by the wall's clock also `idle_pod_memory`, `daemon_memory`, `idle_cpu`.
    Crowd,
    /// `pod_start_at_200`: by the wall's clock only. Two hundred pods take too many instructions to count.
    Many,
}

impl Part {
    /// In the order in which they are run; the last leaves its pods to the node's end.
    pub const ALL: [Self; 9] = [
        Self::Boot,
        Self::Clones,
        Self::Pods,
        Self::Layers,
        Self::Return,
        Self::Net,
        Self::Pull,
        Self::Crowd,
        Self::Many,
    ];

    /// Whether this clock can measure it.
    fn is_for(self, clock: Clock) -> bool {
        clock == Clock::Wall
            || matches!(self, Self::Boot | Self::Clones | Self::Pods | Self::Net | Self::Pull | Self::Crowd)
    }

    /// Its rows without figures.
    fn blank(self, clock: Clock) -> Vec<Row> {
        let (peer, metrics): (_, &[(&str, &str)]) = match (self, clock) {
            (Self::Boot, _) => (qemu_guest::NAME, &[("vm_boot_to_agent", "ms")]),
            (Self::Clones, _) => (clones::PEER, &[("vm_clone_to_agent", "ms")]),
            (Self::Pods, _) => (containerd::NAME, &pods::METRICS),
            (Self::Layers, _) => {
                (containerd::NAME, &[("layer_read", layers::SEQUENTIAL), ("layer_read", layers::RANDOM)])
            }
            (Self::Return, _) => (containerd::NAME, &[memory_return::METRIC]),
            (Self::Net, _) => (containerd::NAME, &network::METRICS),
            (Self::Pull, _) => (containerd::WITH_EROFS, &pull::METRICS),
            (Self::Crowd, Clock::Icount) => (containerd::NAME, &crowd::STARTED),
            (Self::Crowd, Clock::Wall) => (containerd::NAME, &crowd::STARTED_AND_IDLE),
            (Self::Many, _) => (many::PEER, &[("pod_start_at_200", "ms")]),
        };
        metrics.iter().map(|&metric| Row::new(metric, (None, None), peer, 0, clock)).collect()
    }
}

/// The rows that these parts should have given by this clock and that are not among `rows`, all null.
pub fn missing(rows: &[Row], parts: &[Part], clock: Clock) -> Vec<Row> {
    let is_there = |blank: &Row| {
        rows.iter().any(|row| (&row.name, &row.unit, row.clock) == (&blank.name, &blank.unit, clock))
    };
    let wanted = Part::ALL.into_iter().filter(|part| parts.contains(part) && part.is_for(clock));
    wanted.flat_map(|part| part.blank(clock)).filter(|blank| !is_there(blank)).collect()
}

/// How often things are done.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// VMs booted.
    pub boots: usize,
    /// Pods started and stopped.
    pub pods: usize,
    /// Pods started once more, to take the time of their network's plugins.
    pub metered: usize,
    /// Commands run.
    pub execs: usize,
    /// Pods that read a layer, for each way of reading.
    pub reads: usize,
    /// Pods that take memory and give it back.
    pub returns: usize,
    /// Pods that a stream goes to and comes from.
    pub streams: usize,
    /// Pulls of each image.
    pub pulls: usize,
    /// Pods that are asked for at once, and then are idle.
    pub crowd: usize,
    /// Pods that are alive beside those that are started.
    pub many: usize,
    /// Pods that are started beside them.
    pub beside: usize,
}

impl Counts {
    /// What the reports are made with.
    pub const WALL: Self = Self {
        boots: 10,
        pods: 20,
        metered: 10,
        execs: 50,
        reads: 3,
        returns: 2,
        streams: 5,
        pulls: 3,
        crowd: 50,
        many: 200,
        beside: 7,
    };
    /// The same by counted instructions, which repeat to a percent and take several times as long to run.
    pub const ICOUNT: Self =
        Self { boots: 3, pods: 7, metered: 5, execs: 20, streams: 2, pulls: 1, ..Self::WALL };
    /// Enough to see that everything works.
    pub const QUICK: Self = Self {
        boots: 2,
        pods: 3,
        metered: 2,
        execs: 5,
        reads: 1,
        returns: 1,
        streams: 1,
        pulls: 1,
        crowd: 3,
        many: 5,
        beside: 2,
    };
}

/// In the node: measures, and writes `rows.json` and `phases.txt` into `out`.
///
/// # Errors
/// Where nothing could be measured at all.
pub fn measure(clock: Clock, parts: &[Part], counts: &Counts, out: &Path) -> Result<()> {
    let mut rows = Vec::new();
    let (isopod, peer) = (Cri::connect()?, Containerd::start(Snapshotter::Overlayfs)?);
    let mut sides = [Side::isopod(&isopod)?, Side::containerd(&peer)];
    for side in &mut sides {
        println!("  {}: pulling images", side.name);
        side.run("pull", |side| {
            side.cri.pull("busybox")?;
            Ok(side.cri.pull("large")?)
        });
        if side.run("its template", Side::wait_for_template) == Some(true) {
            println!("  {}: pods start from a template", side.name);
        }
    }
    for part in Part::ALL.into_iter().filter(|part| parts.contains(part) && part.is_for(clock)) {
        println!("  measuring {part:?}");
        let begin = Instant::now();
        rows.extend(match part {
            Part::Boot => boot::measure(&sides[0], counts, clock),
            Part::Clones => clones::measure(counts, clock),
            Part::Pods => {
                let rows = pods::measure(&mut sides, counts, clock);
                std::fs::write(out.join("phases.txt"), phases()?)?;
                rows
            }
            Part::Layers => layers::measure(&mut sides, counts),
            Part::Return => memory_return::measure(&mut sides, counts),
            Part::Net => network::measure(&mut sides, counts, clock),
            Part::Pull => pull::measure(&isopod, counts, clock).unwrap_or_else(|error| {
                eprintln!("error: pulls: {error:#}");
                Vec::new()
            }),
            Part::Crowd => crowd::measure(&mut sides, counts, clock),
            Part::Many => many::measure(&mut sides[0], counts, clock),
        });
        println!("  {part:?} took {} s", begin.elapsed().as_secs());
        // what is there is kept, whatever comes
        report::write(&out.join("rows.json"), &rows)?;
    }
    Ok(())
}

/// Where the time of Isopod's last pod start went.
fn phases() -> Result<String> {
    let ran = std::process::Command::new("isopod").arg("phases").output().context("cannot run isopod")?;
    Ok(String::from_utf8(ran.stdout)?)
}

/// How long it took, in milliseconds of the node's clock, and what came of it.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let begin = Instant::now();
    let done = work()?;
    Ok((begin.elapsed().as_secs_f64() * 1000.0, done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_that_gave_nothing_is_reported_as_null() {
        let rows = Part::Boot.blank(Clock::Icount);
        let missing = missing(&rows, &[Part::Boot, Part::Pods, Part::Crowd, Part::Many], Clock::Icount);
        let names: Vec<&str> = missing.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["pod_start", "pod_start_without_cni", "exec", "pod_stop", "pod_start_50"]);
        assert!(missing.iter().all(|row| row.ours.is_none() && row.peer.is_none() && row.n == 0));
    }

    #[test]
    fn every_metric_has_a_goal() {
        let rows = missing(&[], &Part::ALL, Clock::Wall);
        assert_eq!(rows.len(), 20);
        assert!(rows.iter().all(|row| goals::of(&row.name, row.clock).is_some()));
    }
}
