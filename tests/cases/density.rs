//! Cases about what a pod costs its node while it does nothing.

use anyhow::{Context, Result, ensure};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, wait_for};
use isopod_tests::kvm_counters::KvmCounters;
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{held, templates};
use nix::unistd::Pid;
use std::fs;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

/// What is left of a pod's start is done by then.
const UNTIL_IDLE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["density":
            idle_guest_leaves_its_processor_alone,
            freed_memory_goes_back_to_the_host,
        ],
    )
}

/// Connects to a daemon whose pods are as they usually are: clones, unless the caller wants none.
fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    templates::settled(&cri)?;
    Ok(cri)
}

fn idle_guest_leaves_its_processor_alone() -> Result<()> {
    const MINUTE: Duration = Duration::from_secs(60);
    // A young kernel seeds its random numbers often, and writes once what its start has left dirty.
    const UNTIL_GROWN_UP: Duration = Duration::from_secs(80);
    let cri = cri()?;
    let (pod, _) = cri.run_sleeper("idle")?;
    let counters = KvmCounters::of(held::vmm_of(&pod)?)?;
    sleep(UNTIL_GROWN_UP);
    let before = counters.read("exits")?;
    sleep(MINUTE);
    let exits = counters.read("exits")? - before;
    println!("an idle guest of one processor made {exits} exits in a minute");
    ensure!(exits <= 60, "{exits} exits in a minute are more than one a second");
    cri.clean()
}

fn freed_memory_goes_back_to_the_host() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("taking")?;
    let vmm = held::vmm_of(&pod)?;
    sleep(UNTIL_IDLE);
    let before = memory_mib(vmm, "VmRSS")?;
    // It takes its buffer in one piece, fills all of it by one read, and ends.
    cri.shell(&container, "dd if=/dev/zero of=/dev/null bs=200M count=1")?;
    let most = memory_mib(vmm, "VmHWM")?;
    ensure!(most > before + 150, "the host gave it {before} MiB, and {most} MiB at most");
    wait_for("freed memory to come back", || {
        let after = memory_mib(vmm, "VmRSS")?;
        println!("{before} MiB before, {most} at most, {after} after");
        Ok((after < before + 20).then_some(()))
    })?;
    cri.clean()
}

/// Memory of the host that a VMM has now, or had at most; its guest's is in it.
fn memory_mib(vmm: Pid, field: &str) -> Result<u64> {
    let path = format!("/proc/{vmm}/status");
    let status = fs::read_to_string(&path).context(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.with_context(|| format!("no {field}"))?.trim().parse()?;
    Ok(kib >> 10)
}
