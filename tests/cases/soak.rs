//! Many pods: at once, and one after another. Nothing may pile up. `ISOPOD_SOAK` says how many one after another (20); a
//! tenth of them are started at once.

use anyhow::{Result, ensure};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, container_config};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{daemon, held};
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// Pods after which the daemon has everything that it keeps for good.
const WARM_UP: usize = 3;

fn main() -> ExitCode {
    let settings = Settings {
        isopod: Isopod::Serving,
        registry: true,
        memory_mib: 8192,
        timeout: Duration::from_secs(3600),
        ..Settings::default()
    };
    isopod_tests::case::run(
        settings,
        cases!["soak": pods_at_once_all_answer, pods_one_after_another_leave_the_daemon_as_it_was],
    )
}

fn rounds() -> Result<usize> {
    Ok(std::env::var("ISOPOD_SOAK").ok().map_or(Ok(20), |text| text.parse())?)
}

fn pods_at_once_all_answer() -> Result<()> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    let before = held::by_pods()?;
    let threads: Vec<_> = (0..(rounds()? / 10).max(2))
        .map(|n| {
            std::thread::spawn(move || -> Result<()> {
                let cri = Cri::connect()?;
                let (_, container) = cri.run_sleeper(&format!("many-{n}"))?;
                ensure!(cri.shell(&container, "echo here")? == "here", "pod {n} answers wrongly");
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread panics")?;
    }
    cri.clean()?;
    held::nothing_more_than(&before, "at the end")
}

fn pods_one_after_another_leave_the_daemon_as_it_was() -> Result<()> {
    let rounds = rounds()?;
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    let mut after_warm_up = None;
    for round in 0..rounds {
        let (pod, container) = cri.run_sleeper(&format!("round-{round}"))?;
        let again = cri.run_container(&pod, container_config("again", "busybox", &["true"]))?;
        cri.wait_exited(&again)?;
        ensure!(cri.shell(&container, "echo here")? == "here", "pod {round} answers wrongly");
        cri.remove_pod(&pod.id)?;
        if round + 1 == WARM_UP.min(rounds) {
            after_warm_up = Some(Usage::now()?);
        }
    }
    let (begin, end) = (after_warm_up.unwrap_or(Usage::now()?), Usage::now()?);
    println!("daemon after {WARM_UP} pods: {begin:?}; after {rounds}: {end:?}");
    ensure!(end.descriptors <= begin.descriptors + 4, "descriptors grow from {begin:?} to {end:?}");
    ensure!(end.threads <= begin.threads + 2, "threads grow from {begin:?} to {end:?}");
    ensure!(end.memory_kib <= begin.memory_kib + 4096, "memory grows from {begin:?} to {end:?}");
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Usage {
    descriptors: usize,
    threads: usize,
    memory_kib: u64,
}

impl Usage {
    fn now() -> Result<Self> {
        // What ends in the background ends within a moment.
        std::thread::sleep(Duration::from_secs(2));
        let pid = *daemon::pids()?.first().ok_or_else(|| anyhow::anyhow!("there is no daemon"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident =
            status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        Ok(Self {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: fs::read_dir(format!("/proc/{pid}/task"))?.count(),
            memory_kib: resident.unwrap_or(0),
        })
    }
}
