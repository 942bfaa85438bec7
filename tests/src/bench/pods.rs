//! A pod's life by its CRI: `pod_start`, `pod_start_without_cni`, `exec`, `pod_stop`.
//!
//! The sides take turns, so that whatever else the machine does meets both. A side that fails is out of the race, with its
//! reason; the other runs on.

use super::plugins::Meter;
use super::report::{Clock, Row};
use super::side::{Side, settle};
use super::statistics::Samples;
use super::{Counts, containerd, timed};
use crate::cri::{Pod, container_config, pod_config};
use anyhow::{Result, ensure};
use isopod_protocols::cri::PodSandboxConfig;
use std::fs;

/// The metrics and their units.
pub const METRICS: [(&str, &str); 4] =
    [("pod_start", "ms"), ("pod_start_without_cni", "ms"), ("exec", "ms"), ("pod_stop", "ms")];

/// Pods of each side before any figure counts.
const WARM_UP: usize = 2;

/// What one side's pods took, in milliseconds.
#[derive(Default)]
struct Times {
    start: Samples,
    without_cni: Samples,
    exec: Samples,
    stop: Samples,
}

/// Starts and stops pods on each side, and runs commands in one more.
pub fn measure(sides: &mut [Side<'_>; 2], counts: &Counts, clock: Clock) -> Vec<Row> {
    let mut times = [Times::default(), Times::default()];
    for round in 0..WARM_UP + counts.pods {
        for (side, times) in sides.iter_mut().zip(&mut times) {
            let mut unused = Times::default();
            let times = if round < WARM_UP { &mut unused } else { times };
            side.run("a pod's life", |side| live(side, &format!("round-{round}"), times));
        }
    }
    if let Err(error) = without_cni(sides, counts.metered, &mut times) {
        eprintln!("error: meters of CNI plugins: {error:#}");
    }
    for (side, times) in sides.iter_mut().zip(&mut times) {
        side.run("exec", |side| exec(side, counts.execs, times));
        println!(
            "  {}: start {}, without CNI {}; exec {}; stop {} ms",
            side.name, times.start, times.without_cni, times.exec, times.stop
        );
    }
    let [ours, peer] = times.map(|times| [times.start, times.without_cni, times.exec, times.stop]);
    let rows = METRICS.into_iter().zip(ours.iter().zip(&peer)).map(|(metric, (ours, peer))| {
        let n = ours.count().max(peer.count());
        Row::new(metric, (ours.median(), peer.median()), containerd::NAME, n, clock)
    });
    rows.collect()
}

/// Starts once more, with meters in the plugins' places, which the other figures must not hold.
fn without_cni(sides: &mut [Side<'_>; 2], count: usize, times: &mut [Times; 2]) -> Result<()> {
    let meter = Meter::install()?;
    for round in 0..WARM_UP + count {
        for (side, times) in sides.iter_mut().zip(&mut *times) {
            let took = side.run("a start with metered plugins", |side| {
                meter.reset()?;
                let (took, (pod, _)) = timed(|| start(side, &format!("metered-{round}")))?;
                let plugins = meter.milliseconds()?;
                side.cri.remove_pod(&pod.id)?;
                settle();
                Ok(took - plugins)
            });
            if let Some(took) = took.filter(|_| round >= WARM_UP) {
                times.without_cni.push(took);
            }
        }
    }
    Ok(())
}

/// A pod with a container that sleeps, started and stopped as kubelet would if it were in a hurry.
fn live(side: &Side<'_>, name: &str, times: &mut Times) -> Result<()> {
    let (start, pod) = timed(|| start(side, name))?;
    settle();
    let (stop, ()) = timed(|| {
        side.cri.stop_pod(&pod.0.id)?;
        Ok(side.cri.remove_pod(&pod.0.id)?)
    })?;
    settle();
    times.start.push(start);
    times.stop.push(stop);
    Ok(())
}

fn exec(side: &Side<'_>, count: usize, times: &mut Times) -> Result<()> {
    let (pod, container) = start(side, "exec")?;
    settle();
    for round in 0..WARM_UP + count {
        let (took, answer) = timed(|| Ok(side.cri.exec(&container, &["true"])?))?;
        ensure!(answer.exit_code == 0, "true exited with {}", answer.exit_code);
        if round >= WARM_UP {
            times.exec.push(took);
        }
    }
    Ok(side.cri.remove_pod(&pod.id)?)
}

/// What the starts of some pods take, one after another, in milliseconds; each is gone before the next.
pub fn starts(side: &Side<'_>, name: &str, count: usize) -> Result<Samples> {
    let mut times = Times::default();
    for round in 0..WARM_UP + count {
        let mut unused = Times::default();
        live(side, &format!("{name}-{round}"), if round < WARM_UP { &mut unused } else { &mut times })?;
    }
    Ok(times.start)
}

/// A pod with one container that sleeps; the container's id.
pub fn start(side: &Side<'_>, name: &str) -> Result<(Pod, String)> {
    let pod = side.cri.run_pod_with(config(side, name)?)?;
    let container =
        side.cri.run_container(&pod, container_config("sleeper", "busybox", &["sleep", "100000"]))?;
    Ok((pod, container))
}

/// The configuration of a pod in a control group of its own.
pub fn config(side: &Side<'_>, name: &str) -> Result<PodSandboxConfig> {
    let mut config = pod_config(name);
    // kubelet makes it
    fs::create_dir_all(&config.log_directory)?;
    if let Some(linux) = &mut config.linux {
        linux.cgroup_parent = format!("{}/{name}", side.cgroup_parent());
    }
    Ok(config)
}
