//! Cases about VMs that follow their pods' limits while they run. The node has two CPUs, as no VM gets more than its node has.

use anyhow::{Result, ensure};
use isopod_protocols::cri as v1;
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config, wait_for};
use isopod_tests::daemon;
use isopod_tests::held::vmm_of;
use isopod_tests::node::{Isopod, Settings};
use std::fs;
use std::ops::Range;
use std::process::ExitCode;
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

/// Microseconds of a limit's period.
const PERIOD: i64 = 100_000;

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, cpus: 2, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["resize":
            memory_follows_the_pods_limits_up_and_down,
            processors_follow_the_pods_limits_up_and_down,
            limits_of_a_new_container_grow_the_vm,
            more_processors_than_the_handler_allows_are_refused,
            vmm_has_the_oom_score_of_its_containers,
        ],
    )
}

/// Connects, and has the image that all cases use.
fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    Ok(cri)
}

/// UpdatePodSandboxResources: limits of the whole pod.
fn resize(cri: &Cri, pod: &Pod, resources: v1::LinuxContainerResources) -> Result<(), Status> {
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: None,
        resources: Some(resources),
    };
    cri.wait(cri.service().update_pod_sandbox_resources(request)).map(drop)
}

/// UpdateContainerResources.
fn update(cri: &Cri, container: &str, limits: v1::LinuxContainerResources) -> Result<(), Status> {
    let update = v1::UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: Some(limits),
        ..Default::default()
    };
    cri.wait(cri.service().update_container_resources(update)).map(drop)
}

fn memory_follows_the_pods_limits_up_and_down() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("growing")?;
    let total_mib = || -> Result<i64> {
        Ok(cri.shell(&container, "grep MemTotal /proc/meminfo | tr -dc 0-9")?.trim().parse::<i64>()? >> 10)
    };
    let begun_with = total_mib()?;
    ensure!(begun_with < 256, "{begun_with} MiB");

    // A container's limit, and what the guest needs for itself.
    let limits = v1::LinuxContainerResources { memory_limit_in_bytes: 512 * MIB, ..Default::default() };
    update(&cri, &container, limits)?;
    // The guest has taken it; the last of it is in use a moment later.
    let reaches = |wanted: Range<i64>| {
        wait_for("memory to be in use", || Ok(Some(total_mib()?).filter(|total| wanted.contains(total))))
    };
    let grown = reaches(begun_with + 500..768)?;

    let mib =
        |mib: i64| v1::LinuxContainerResources { memory_limit_in_bytes: mib * MIB, ..Default::default() };
    resize(&cri, &pod, mib(1024))?;
    let largest = reaches(grown + 500..1280)?;
    // The guest gives back what it can, when it can.
    resize(&cri, &pod, mib(256))?;
    wait_for("the guest to shrink", || Ok((total_mib()? < largest - 256).then_some(())))?;
    cri.clean()
}

/// How many processors a container sees.
fn processors(cri: &Cri, container: &str) -> Result<u32> {
    Ok(cri.shell(container, "nproc")?.trim().parse()?)
}

fn processors_follow_the_pods_limits_up_and_down() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("growing")?;
    ensure!(processors(&cri, &container)? == 1);

    let limits = v1::LinuxContainerResources { cpu_quota: 150_000, cpu_period: PERIOD, ..Default::default() };
    update(&cri, &container, limits)?;
    ensure!(processors(&cri, &container)? == 2, "{}", cri.shell(&container, "cat /proc/cpuinfo")?);
    // Both work.
    cri.shell(&container, "for cpu in 0 1; do taskset -c $cpu true || exit 1; done")?;

    let cpu = |cpu_quota| v1::LinuxContainerResources { cpu_quota, cpu_period: PERIOD, ..Default::default() };
    for (quota, expected) in [(100_000, 1), (200_000, 2), (50_000, 1)] {
        resize(&cri, &pod, cpu(quota))?;
        ensure!(processors(&cri, &container)? == expected, "with a quota of {quota}");
    }
    // What the pod has is told, and the next daemon knows it too.
    daemon::restart()?;
    let cri = Cri::connect()?;
    resize(&cri, &pod, cpu(200_000))?;
    ensure!(processors(&cri, &container)? == 2, "after the daemon's restart");
    cri.clean()
}

fn limits_of_a_new_container_grow_the_vm() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("growing")?;
    let mut config = container_config("large", "busybox", &["sleep", "1000"]);
    let limits = v1::LinuxContainerResources {
        cpu_quota: 200_000,
        cpu_period: PERIOD,
        memory_limit_in_bytes: 512 * MIB,
        ..Default::default()
    };
    config.linux = Some(v1::LinuxContainerConfig { resources: Some(limits), ..Default::default() });
    let container = cri.create(&pod, config)?;
    cri.start(&container)?;
    ensure!(processors(&cri, &container)? == 2);
    cri.clean()
}

fn more_processors_than_the_handler_allows_are_refused() -> Result<()> {
    daemon::configured("[vm]\nmax_vcpus = 1\n", |_| {
        let cri = cri()?;
        let (pod, container) = cri.run_sleeper("small")?;
        let two =
            v1::LinuxContainerResources { cpu_quota: 200_000, cpu_period: PERIOD, ..Default::default() };
        let refused = resize(&cri, &pod, two).expect_err("its VM may have one");
        ensure!(refused.code() == Code::InvalidArgument, "{refused:?}");
        ensure!(refused.message().contains("raise vm.max_vcpus"), "{refused:?}");
        ensure!(processors(&cri, &container)? == 1);
        cri.clean()
    })
}

fn vmm_has_the_oom_score_of_its_containers() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("scored")?;
    let vmm = vmm_of(&pod)?;
    let is = |expected: &str, when: &str| {
        let score = fs::read_to_string(format!("/proc/{vmm}/oom_score_adj"))?;
        ensure!(score.trim() == expected, "{} {when}, and not {expected}", score.trim());
        Ok(())
    };
    let score = |oom_score_adj| v1::LinuxContainerResources { oom_score_adj, ..Default::default() };
    let sleeper = |name: &str, oom_score_adj| -> Result<String> {
        let mut config = container_config(name, "busybox", &["sleep", "1000"]);
        let resources = Some(score(oom_score_adj));
        config.linux = Some(v1::LinuxContainerConfig { resources, ..Default::default() });
        Ok(cri.run_container(&pod, config)?)
    };
    is("1000", "without containers")?;
    let best_effort = sleeper("besteffort", 1000)?;
    is("1000", "with a container that goes first")?;
    update(&cri, &best_effort, score(900))?;
    is("900", "after an update")?;
    let guaranteed = sleeper("guaranteed", -997)?;
    is("-997", "beside one that goes last")?;
    let swap = fs::read_to_string(format!("/proc/{vmm}/cgroup"))?;
    let swap = format!("/sys/fs/cgroup{}/memory.swap.max", swap.trim().trim_start_matches("0::"));
    if let Ok(swap) = fs::read_to_string(swap) {
        ensure!(swap.trim() == "0", "a pod may have {} of the node's swap", swap.trim());
    }
    daemon::restart()?;
    let cri = Cri::connect()?;
    is("-997", "with the next daemon")?;
    cri.stop(&guaranteed, 0)?;
    wait_for("the score of the container that is left", || Ok(is("900", "after an end").ok()))?;
    cri.remove(&guaranteed)?;
    cri.stop(&best_effort, 0)?;
    cri.remove(&best_effort)?;
    is("1000", "when all containers are gone")?;
    cri.clean()
}
