//! `pull_largest`, `pull_layers_per_second`, `pull_peak_memory`: images fetched from the node's registry and converted.
//!
//! The peer is a containerd of its own whose snapshotter and differ are those for EROFS: both sides make the same kind of file, Isopod by
//! its own converter, the peer by mkfs.erofs. Each pull finds no image and no layer, and the registry's files in the node's memory.

use super::containerd::{self, Containerd, Snapshotter};
use super::pull_memory;
use super::report::{Clock, Row};
use super::side::{Side, settle};
use super::statistics::Samples;
use super::{Counts, timed};
use crate::cri::Cri;
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// The image with the most bytes: one layer of 16,000 files.
const LARGEST: &str = "debian";

/// The image with the most layers.
const MANY: &str = "many";

/// The layers of [`MANY`].
const LAYERS: f64 = 46.0;

/// Has the node read the registry's files from the machine, so that no pull waits for that.
const READ_REGISTRY: &str = ". /node/settings && find \"$REGISTRY\" -type f -exec cat {} + >/dev/null";

/// The metrics and their units.
pub const METRICS: [(&str, &str); 3] =
    [("pull_largest", "ms"), ("pull_layers_per_second", "layers/s"), ("pull_peak_memory", "MiB")];

/// What one side's pulls took.
#[derive(Default)]
struct Pulls {
    largest_ms: Samples,
    layers_per_second: Samples,
    peak_mib: Samples,
}

/// Pulls on each side in turn. Afterwards Isopod has the images that it had before.
pub fn measure(isopod: &Cri, counts: &Counts, clock: Clock) -> Result<Vec<Row>> {
    // which the peer's snapshotter asks for
    run("modprobe", &["erofs"])?;
    run("sh", &["-c", READ_REGISTRY])?;
    let peer = Containerd::start(Snapshotter::Erofs)?;
    let had = isopod.list_images()?;
    let mut sides = [Side::isopod(isopod)?, Side::containerd(&peer)];
    let mut pulls = [Pulls::default(), Pulls::default()];
    for _ in 0..counts.pulls {
        for (side, pulls) in sides.iter_mut().zip(&mut pulls) {
            side.run("pulling", |side| pull(side, pulls));
        }
    }
    for name in had.iter().flat_map(|image| &image.repo_tags) {
        isopod.pull(name)?;
    }
    for (side, Pulls { largest_ms, layers_per_second, peak_mib }) in sides.iter().zip(&pulls) {
        println!(
            "  {}: {LARGEST} {largest_ms} ms, at most {peak_mib} MiB; {layers_per_second} layers/s",
            side.name
        );
    }
    Ok(rows(&pulls, clock))
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status =
        Command::new(program).args(arguments).status().with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

/// Both images, from nothing to nothing.
fn pull(side: &Side<'_>, pulls: &mut Pulls) -> Result<()> {
    side.cri.remove_images()?;
    settle();
    let (peak, largest) = pull_memory::peak_of(side, || timed(|| Ok(side.cri.pull(LARGEST)?)))?;
    side.cri.remove_images()?;
    settle();
    let (many, _) = timed(|| Ok(side.cri.pull(MANY)?))?;
    side.cri.remove_images()?;
    pulls.largest_ms.push(largest.0);
    pulls.layers_per_second.push(LAYERS / many * 1000.0);
    pulls.peak_mib.push(peak);
    Ok(())
}

fn rows([ours, peer]: &[Pulls; 2], clock: Clock) -> Vec<Row> {
    let figures = [
        (&ours.largest_ms, &peer.largest_ms),
        (&ours.layers_per_second, &peer.layers_per_second),
        (&ours.peak_mib, &peer.peak_mib),
    ];
    let rows = METRICS.into_iter().zip(figures).map(|(metric, (ours, peer))| {
        let n = ours.count().max(peer.count());
        Row::new(metric, (ours.median(), peer.median()), containerd::WITH_EROFS, n, clock)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_gets_its_own_samples() {
        let side = |of: f64| Pulls {
            largest_ms: [of].into_iter().collect(),
            layers_per_second: [of + 1.0].into_iter().collect(),
            peak_mib: [of + 2.0].into_iter().collect(),
        };
        let rows = rows(&[side(10.0), side(20.0)], Clock::Wall);
        let figures: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.ours, row.peer)).collect();
        assert_eq!(
            figures,
            [
                ("pull_largest", Some(10.0), Some(20.0)),
                ("pull_layers_per_second", Some(11.0), Some(21.0)),
                ("pull_peak_memory", Some(12.0), Some(22.0)),
            ]
        );
    }
}
