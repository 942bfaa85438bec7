//! Cases of containers that take all there is of something that the guest's kernel counts, seen from the
//! containers beside them and from the agent. What the host gives a pod is the matter of `hostile_guest`.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri as v1;
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config, pod_config};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::node_programs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["exhaustion":
            container_that_takes_all_tasks_leaves_the_others_theirs,
            container_that_opens_many_files_leaves_the_others_theirs,
            container_that_makes_many_namespaces_leaves_the_others_theirs,
            container_that_watches_many_files_leaves_the_agent_its_watches,
            removal_of_a_container_full_of_groups_delays_no_other,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    cri.pull(node_programs::IMAGE)?;
    Ok(cri)
}

/// A container that takes as much of something as it is given, or `most`; answers how much that was. It holds
/// all of it.
fn use_up(cri: &Cri, pod: &Pod, what: &str, most: Option<u32>) -> Result<u32> {
    let most = most.map(|most| most.to_string());
    let command: Vec<&str> = ["use-up", what].into_iter().chain(most.as_deref()).collect();
    let container = cri.run_container(pod, container_config(what, node_programs::IMAGE, &command))?;
    let log = cri.wait_logged(&container, "took ")?;
    let count = log.split("took ").nth(1).and_then(|rest| rest.split(':').next());
    count.with_context(|| log.clone())?.parse().with_context(|| log.clone())
}

/// Checks that the pod goes on: a container has statistics and runs commands, also as a user who may not pass
/// limits, and another one is made.
fn goes_on(cri: &Cri, pod: &Pod, container: &str) -> Result<()> {
    let request = v1::ContainerStatsRequest { container_id: container.to_owned() };
    let stats = cri.wait(cri.service().container_stats(request)).context("statistics")?;
    ensure!(stats.stats.is_some_and(|stats| stats.memory.is_some()), "no figures");
    ensure!(cri.shell(container, "cat /etc/hostname | wc -l")?.trim() == "1");
    let context = v1::LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: 1000 }),
        ..Default::default()
    };
    let mut config = container_config("late", "busybox", &["sh", "-c", "cat /etc/hostname; echo done"]);
    config.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    let late = cri.run_container(pod, config).context("another container")?;
    let exit = cri.wait_exited(&late)?;
    ensure!(exit.exit_code == 0, "{exit:?}: {}", cri.log(&late)?);
    Ok(())
}

fn container_that_takes_all_tasks_leaves_the_others_theirs() -> Result<()> {
    let cri = cri()?;
    let (pod, other) = cri.run_sleeper("tasks")?;
    let tasks = use_up(&cri, &pod, "tasks", None)?;
    ensure!(tasks > 500, "{tasks} tasks are no more than any container may need");
    // By then the agent has ended its idle threads, and needs new ones.
    std::thread::sleep(Duration::from_secs(15));
    goes_on(&cri, &pod, &other)?;
    cri.clean()
}

fn container_that_opens_many_files_leaves_the_others_theirs() -> Result<()> {
    let cri = cri()?;
    let (pod, other) = cri.run_sleeper("files")?;
    // The kernel's own bound for a guest of 256 MiB is about 25,000, for all of it.
    let files = use_up(&cri, &pod, "files", Some(60_000))?;
    ensure!(files == 60_000, "one process has {files} of the 1,048,576 files that its limit allows");
    goes_on(&cri, &pod, &other)?;
    cri.clean()
}

fn container_that_makes_many_namespaces_leaves_the_others_theirs() -> Result<()> {
    let cri = cri()?;
    let (pod, other) = cri.run_sleeper("namespaces")?;
    // The kernel's own bound for a user of such a guest is about 900, and the agent's children are the same
    // user.
    let namespaces = use_up(&cri, &pod, "cgroup-namespaces", Some(2000))?;
    ensure!(namespaces == 2000, "{namespaces} namespaces");
    goes_on(&cri, &pod, &other)?;
    cri.clean()
}

fn container_that_watches_many_files_leaves_the_agent_its_watches() -> Result<()> {
    let cri = cri()?;
    let (pod, other) = cri.run_sleeper("watches")?;
    // The kernel's own bound for a user is 4% of memory, which are about 50,000.
    let watches = use_up(&cri, &pod, "watches", Some(100_000))?;
    ensure!(watches == 100_000, "{watches} watches");
    goes_on(&cri, &pod, &other)?;
    // What the kernel counts per user is without a bound, as far as it is charged.
    let script = "cd /proc/sys/user && cat max_inotify_instances max_inotify_watches max_user_namespaces; \
                  grep -c 'pending signals  *unlimited' /proc/self/limits";
    let bounds = cri.shell(&other, script)?;
    ensure!(bounds.lines().eq(["2147483647", "2147483647", "2147483647", "1"]), "{bounds}");
    cri.clean()
}

fn removal_of_a_container_full_of_groups_delays_no_other() -> Result<()> {
    const SOON: Duration = Duration::from_secs(5);
    let cri = cri()?;
    let mut config = pod_config("groups");
    let context = v1::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(context);
    let pod = cri.run_pod_with(config)?;
    let other = cri.run_container(&pod, container_config("other", "busybox", &["sleep", "100000"]))?;
    let context = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let mut config = container_config("full", "busybox", &["sleep", "100000"]);
    config.linux.get_or_insert_default().security_context = Some(context);
    let full = cri.run_container(&pod, config)?;

    let nest =
        "cd /sys/fs/cgroup; d=.; n=0; while mkdir $d/d 2>/dev/null; do d=$d/d; n=$((n+1)); done; echo $n";
    let depth: u32 = cri.shell(&full, nest)?.trim().parse()?;
    ensure!((16..64).contains(&depth), "groups are nested {depth} deep");
    let many = "cd /sys/fs/cgroup; for n in $(seq 3000); do echo g$n; done | xargs mkdir 2>/dev/null; ls -d g* | wc -l";
    let count: u32 = cri.shell(&full, many)?.trim().parse()?;
    ensure!((1000..=2048).contains(&count), "{count} groups");

    let mut service = cri.service();
    let request = v1::RemoveContainerRequest { container_id: full };
    let removal = cri.begin(async move { service.remove_container(request).await });
    while !removal.is_finished() {
        let begun = Instant::now();
        ensure!(cri.shell(&other, "echo here")? == "here");
        ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    }
    cri.block_on(removal)??;
    goes_on(&cri, &pod, &other)?;
    cri.clean()
}
