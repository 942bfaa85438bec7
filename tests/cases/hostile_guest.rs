//! Cases about what a guest is let see and do of its host, from a container's side.

use anyhow::{Context, Result, ensure};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, container_config, pod_config};
use isopod_tests::daemon;
use isopod_tests::held;
use isopod_tests::node::{Isopod, Settings};
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let settings = Settings {
        isopod: Isopod::Serving,
        registry: true,
        timeout: Duration::from_secs(1200),
        ..Settings::default()
    };
    isopod_tests::case::run(
        settings,
        cases!["hostile_guest":
            guest_sees_no_virtualization_unless_its_handler_says_so,
            vmm_of_a_pod_makes_no_file_longer_than_its_scratch_disk,
            what_a_pod_flushes_and_discards_is_kept_and_freed,
            pod_that_flushes_without_end_answers,
        ],
    )
}

/// Connects, and has the image that all cases use.
fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    Ok(cri)
}

/// Processors of the guest that say they can run VMs.
const VIRTUALIZING: &str = "grep -cwE 'vmx|svm' /proc/cpuinfo || true";

fn guest_sees_no_virtualization_unless_its_handler_says_so() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("walled")?;
    let seen = cri.shell(&container, VIRTUALIZING)?;
    ensure!(seen == "0", "{seen} processors of the guest can run VMs");
    cri.clean()?;
    daemon::configured("[handlers.nested]\nnested_virtualization = true\n", |cri| {
        let pod = cri.run_pod_by("nested", pod_config("nested"))?;
        let config = container_config("c", "busybox", &["sleep", "1000"]);
        let container = cri.run_container(&pod, config)?;
        let seen = cri.shell(&container, VIRTUALIZING)?;
        // What the node's KVM does not give to guests, no handler can.
        let given = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            let nested = fs::read_to_string(format!("/sys/module/{module}/parameters/nested"));
            nested.is_ok_and(|nested| matches!(nested.trim(), "1" | "Y"))
        });
        ensure!((seen != "0") == given, "{seen} processors can run VMs; the node's KVM gives it: {given}");
        // Another one of the default handler sees none still.
        let (_, container) = cri.run_sleeper("beside")?;
        ensure!(cri.shell(&container, VIRTUALIZING)? == "0", "seen beside a handler that nests");
        cri.clean()
    })
}

fn vmm_of_a_pod_makes_no_file_longer_than_its_scratch_disk() -> Result<()> {
    /// `vm.scratch_mib`, which the node's configuration leaves as it is.
    const SCRATCH_MIB: u64 = 10240;
    let cri = cri()?;
    let pod = cri.run_pod("limited")?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", held::vmm_of(&pod)?))?;
    let size = limits.lines().find(|line| line.starts_with("Max file size")).context("no limit")?;
    let expected = (SCRATCH_MIB << 20).to_string();
    ensure!(size.split_whitespace().filter(|word| *word == expected).count() == 2, "{size}");
    cri.clean()
}

/// Flushes and holes are another thread's work than reads and writes.
fn what_a_pod_flushes_and_discards_is_kept_and_freed() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("flusher")?;
    let script = "set -e; i=0; while [ $i -lt 20 ]; do \
        dd if=/dev/urandom of=/f$i bs=64k count=16 conv=fsync 2>/dev/null; md5sum /f$i >> /sums; i=$((i+1)); done; \
        sync; rm /f1 /f3; sync; grep -v 'f[13]$' /sums | md5sum -c -s && echo whole";
    let said = cri.shell(&container, script)?;
    ensure!(said == "whole", "{said}");
    cri.clean()
}

fn pod_that_flushes_without_end_answers() -> Result<()> {
    const SOON: Duration = Duration::from_secs(20);
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("endless")?;
    let flush = "while true; do dd if=/dev/zero of=/f bs=64k count=4 conv=fsync 2>/dev/null; done";
    cri.run_container(&pod, container_config("flusher", "busybox", &["sh", "-c", flush]))?;
    for _ in 0..5 {
        let begin = Instant::now();
        ensure!(cri.shell(&container, "echo here")? == "here");
        cri.pod_status(&pod.id)?;
        ensure!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    }
    cri.clean()
}
