//! Cases about sudden ends: every process killed, at rest and in the middle of its work, VMMs that stop working, and clients
//! that leave.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{self as v1, ContainerState, PodSandboxState};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, container_config, pod_config, wait_for};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{daemon, held, templates};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tonic::Code;

/// Longest wait for an answer about something that was killed.
const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let settings = Settings {
        isopod: Isopod::Serving,
        registry: true,
        timeout: Duration::from_secs(1200),
        ..Settings::default()
    };
    isopod_tests::case::run(
        settings,
        cases!["kill":
            daemon_killed_at_rest_keeps_pods_logs_and_lists,
            vmm_killed_makes_the_pod_not_ready_and_leaves_others_alone,
            vmm_killed_while_its_pod_starts_fails_the_start_soon,
            vmm_killed_during_exec_fails_the_exec_soon,
            vmm_killed_during_a_stop_ends_the_stop_soon,
            vmms_that_do_not_answer_hold_up_no_figures_of_others,
            guest_that_panics_makes_the_pod_not_ready_and_quotes_its_console,
            container_init_killed_by_another_container_is_told_as_such,
            client_that_leaves_run_pod_sandbox_leaves_nothing,
            client_that_leaves_create_container_leaves_nothing,
            client_that_leaves_exec_sync_ends_its_command,
            client_that_leaves_stop_pod_sandbox_has_it_stopped,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    cri.clean()?;
    templates::settled(&cri)?;
    Ok(cri)
}

/// Removes all pods, and looks for what is left.
fn nothing_left(cri: &Cri, before: &BTreeSet<String>, when: &str) -> Result<()> {
    cri.clean()?;
    held::nothing_more_than(before, when)
}

fn daemon_killed_at_rest_keeps_pods_logs_and_lists() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("survivor")?;
    let script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; sleep 1000";
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", script]))?;
    cri.wait_logged(&container, "line 20")?;
    let (pods, containers) = (cri.pods()?, cri.containers()?);
    daemon::kill()?;
    // Long enough that lines come while no daemon runs.
    std::thread::sleep(Duration::from_secs(1));
    daemon::start()?;
    ensure!(cri.pods()? == pods && cri.containers()? == containers, "the lists are others after the restart");
    ensure!(cri.pod_status(&pod.id)?.state() == PodSandboxState::SandboxReady, "the pod is not ready");
    let log = cri.wait_logged(&container, "line 299")?;
    for i in 0..300 {
        ensure!(log.lines().any(|l| l.ends_with(&format!("F line {i}"))), "line {i} is lost");
    }
    ensure!(cri.shell(&container, "echo alive")? == "alive", "exec after the restart");
    cri.stop(&container, 0)?;
    ensure!(cri.status(&container)?.state() == ContainerState::ContainerExited, "not stopped");
    cri.clean()
}

/// Processor time of a process so far, in clock ticks (proc(5): fields 14 and 15 of stat).
fn ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn vmm_killed_makes_the_pod_not_ready_and_leaves_others_alone() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let (victim, container) = cri.run_sleeper("victim")?;
    let (_, other) = cri.run_sleeper("other")?;
    kill(held::vmm_of(&victim)?, Signal::SIGKILL)?;
    let status = cri.wait_exited(&container)?;
    ensure!((status.exit_code, status.reason.as_str()) == (255, "Unknown"), "{status:?}");
    ensure!(
        cri.pod_status(&victim.id)?.state() == PodSandboxState::SandboxNotready,
        "the pod is still ready"
    );
    let refused = cri.exec(&container, &["true"]).expect_err("it is gone");
    ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
    ensure!(cri.shell(&other, "echo fine")? == "fine", "the other pod was hit");
    nothing_left(&cri, &before, "of a killed VM")
}

/// A pod that boots: what becomes of a clone whose VMM is killed is told by `clones`.
fn vmm_killed_while_its_pod_starts_fails_the_start_soon() -> Result<()> {
    daemon::configured("[vm]\ntemplate = \"off\"\n", |cri| {
        let before = held::by_pods()?;
        // As soon as it is there, and in the middle of the guest's boot.
        for spent in [0, 10, 40] {
            let killer = std::thread::spawn(move || {
                let vmm = wait_for("a VMM at work", || {
                    Ok(held::vmms()?.into_iter().map(|(pid, _)| pid).find(|pid| ticks(*pid) >= spent))
                })?;
                Ok::<_, anyhow::Error>(kill(vmm, Signal::SIGKILL)?)
            });
            let begin = Instant::now();
            let refused = cri.run_pod("stillborn").expect_err("its VM was killed");
            killer.join().expect("the killer does not panic")?;
            ensure!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
            ensure!(refused.code() == Code::Internal && refused.message().contains("ended"), "{refused:?}");
            ensure!(cri.pods()?.is_empty(), "it is listed");
            nothing_left(cri, &before, &format!("of a VM killed after {spent} ticks"))?;
        }
        Ok(())
    })
}

/// Waits for an exec that makes a file to show that it runs.
fn wait_exec(cri: &Cri, container: &str) -> Result<()> {
    let there = || Ok(cri.exec(container, &["test", "-e", "/exec-runs"])?.exit_code == 0);
    wait_for("the exec to run", || there().map(|there| there.then_some(())))
}

fn vmm_killed_during_exec_fails_the_exec_soon() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let (pod, container) = cri.run_sleeper("busy")?;
    let vmm = held::vmm_of(&pod)?;
    let (other, of) = (Cri::connect()?, container.clone());
    let killer = std::thread::spawn(move || {
        wait_exec(&other, &of)?;
        Ok::<_, anyhow::Error>(kill(vmm, Signal::SIGKILL)?)
    });
    let begin = Instant::now();
    ensure!(
        cri.exec_for(&container, &["sh", "-c", "touch /exec-runs; sleep 300"], 300).is_err(),
        "an exec outlived its VM"
    );
    ensure!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    killer.join().expect("the killer does not panic")?;
    nothing_left(&cri, &before, "of a VM killed during an exec")
}

fn vmm_killed_during_a_stop_ends_the_stop_soon() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let pod = cri.run_pod("stubborn")?;
    let script = "trap 'echo I stay' TERM; echo ready; while true; do sleep 0.1; done";
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", script]))?;
    let vmm = held::vmm_of(&pod)?;
    // Without its trap, the first process of a namespace does not hear the signal at all.
    cri.wait_logged(&container, "ready")?;
    let (other, of) = (Cri::connect()?, container.clone());
    let stop = std::thread::spawn(move || other.stop(&of, 300));
    cri.wait_logged(&container, "I stay")?;
    kill(vmm, Signal::SIGKILL)?;
    let begin = Instant::now();
    stop.join().expect("the stop does not panic")?;
    ensure!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    let status = cri.status(&container)?;
    ensure!((status.exit_code, status.reason.as_str()) == (255, "Unknown"), "{status:?}");
    cri.stop_pod(&pod.id)?;
    nothing_left(&cri, &before, "of a VM killed during a stop")
}

/// The agent is the first process of its guest, which nothing in the guest can kill: it goes when the kernel goes.
/// A VMM whose guest keeps it at its disk answers as little as one that is stopped.
fn vmms_that_do_not_answer_hold_up_no_figures_of_others() -> Result<()> {
    let cri = cri()?;
    let mut silent = Vec::new();
    for name in ["silent", "mute", "dumb"] {
        let (pod, _) = cri.run_sleeper(name)?;
        silent.push((held::vmm_of(&pod)?, pod));
    }
    let (sound, _) = cri.run_sleeper("sound")?;
    for (vmm, _) in &silent {
        kill(*vmm, Signal::SIGSTOP)?;
    }
    let begun = Instant::now();
    let request = v1::ListPodSandboxStatsRequest::default();
    let list = cri.wait(cri.service().list_pod_sandbox_stats(request));
    let took = begun.elapsed();
    for (vmm, _) in &silent {
        kill(*vmm, Signal::SIGCONT)?;
    }
    // Two seconds, for all of them together.
    ensure!(took < Duration::from_secs(5), "the list took {took:?}");
    let stats = list?.stats;
    ensure!(stats.len() == 4, "{} pods are listed", stats.len());
    for stats in stats {
        let of_sound = stats.attributes.unwrap_or_default().id == sound.id;
        let linux = stats.linux.context("no figures")?;
        ensure!(linux.network.is_some() == of_sound && linux.containers.is_empty() != of_sound, "{linux:?}");
        ensure!(linux.cpu.is_some() && linux.memory.is_some(), "what the host knows is left out: {linux:?}");
    }
    cri.clean()
}

fn guest_that_panics_makes_the_pod_not_ready_and_quotes_its_console() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    daemon::restart()?;
    let pod = cri.run_pod("panic")?;
    // More than the guest has, of a kernel that is told to give up then.
    let greedy = "echo 2 >/proc/sys/vm/panic_on_oom; for i in 1 2 3 4; do dd if=/dev/zero of=/dev/null bs=100M & done; wait";
    let mut config = container_config("c", "busybox", &["sh", "-c", greedy]);
    let context = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    config.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    let container = cri.run_container(&pod, config)?;
    let status = cri.wait_exited(&container)?;
    ensure!((status.exit_code, status.reason.as_str()) == (255, "Unknown"), "{status:?}");
    ensure!(cri.pod_status(&pod.id)?.state() == PodSandboxState::SandboxNotready, "the pod is ready");
    let log = wait_for("the guest's last words in the daemon's log", || {
        let log = fs::read_to_string(daemon::LOG)?;
        Ok(log.contains("vm ended by itself").then_some(log))
    })?;
    ensure!(log.contains("Kernel panic - not syncing: Out of memory"), "the console is not quoted");
    nothing_left(&cri, &before, "of a guest that panicked")
}

fn container_init_killed_by_another_container_is_told_as_such() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("murder")?;
    // In one PID namespace for the whole pod, they see each other.
    let config = |name, command: &[&str]| {
        let mut config = container_config(name, "busybox", command);
        let namespaces = v1::NamespaceOption { pid: v1::NamespaceMode::Pod.into(), ..Default::default() };
        let context =
            v1::LinuxContainerSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        config.linux =
            Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        config
    };
    let victim = cri.run_container(&pod, config("victim", &["sleep", "4711"]))?;
    let other = cri.run_container(&pod, config("other", &["sleep", "100000"]))?;
    cri.shell(&other, "kill -9 $(pgrep -f 'sleep 4711' | head -n 1)")?;
    let status = cri.wait_exited(&victim)?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "Error"), "{status:?}");
    ensure!(status.finished_at >= status.started_at, "{status:?}");
    ensure!(cri.shell(&other, "echo fine")? == "fine", "the other container was hit");
    cri.clean()
}

/// Calls, and hangs up after a time. Whether it was answered before.
fn hang_up<T>(cri: &Cri, after: Duration, call: impl Future<Output = T>) -> bool {
    cri.block_on(async { tokio::time::timeout(after, call).await.is_ok() })
}

fn client_that_leaves_run_pod_sandbox_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    for millis in [5, 50, 200, 700] {
        let mut service = cri.service();
        let request = v1::RunPodSandboxRequest { config: Some(pod_config("left")), ..Default::default() };
        let answered = hang_up(&cri, Duration::from_millis(millis), service.run_pod_sandbox(request));
        if answered {
            // A clone may be there so soon, and is the client's then.
            ensure!(millis > 50, "a pod in {millis} ms");
            cri.clean()?;
        }
        wait_for("the pod to be undone", || Ok(cri.pods()?.is_empty().then_some(())))?;
        held::nothing_more_than(&before, &format!("after {millis} ms, answered: {answered}"))?;
    }
    Ok(())
}

fn client_that_leaves_create_container_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("left")?;
    let vmm = held::vmm_of(&pod)?;
    let open = held::layers_of(vmm);
    for millis in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let mut service = cri.service();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(container_config("c", "busybox", &["sleep", "1000"])),
            sandbox_config: Some(pod.config.clone()),
        };
        let answered = hang_up(&cri, Duration::from_millis(millis), service.create_container(request));
        // It may have been made just before the client left.
        let undone = wait_for("the container to be undone", || {
            cri.containers()?.iter().try_for_each(|container| cri.remove(&container.id))?;
            Ok((held::layers_of(vmm) == open).then_some(()))
        });
        undone.with_context(|| {
            format!("after {millis} ms, answered: {answered}: {:?}", held::layers_of(vmm))
        })?;
    }
    // The name and all else is free again.
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sleep", "1000"]))?;
    ensure!(cri.shell(&container, "echo fine")? == "fine", "the pod was hit");
    cri.clean()
}

fn client_that_leaves_exec_sync_ends_its_command() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("left")?;
    let mut service = cri.service();
    let cmd = ["sh", "-c", "touch /exec-runs; exec sleep 5151"].map(str::to_owned).into();
    let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 0 };
    let call = cri.begin(async move { service.exec_sync(request).await });
    wait_exec(&cri, &container)?;
    call.abort();
    ensure!(cri.block_on(call).is_err(), "it was answered");
    wait_for("the command to be killed", || {
        Ok((cri.exec(&container, &["pgrep", "-f", "sleep 5151"])?.exit_code == 1).then_some(()))
    })?;
    ensure!(cri.status(&container)?.state() == ContainerState::ContainerRunning, "the container was hit");
    cri.clean()
}

fn client_that_leaves_stop_pod_sandbox_has_it_stopped() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    for millis in [1, 30] {
        let (pod, container) = cri.run_sleeper("left")?;
        let mut service = cri.service();
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        hang_up(&cri, Duration::from_millis(millis), service.stop_pod_sandbox(request));
        // Perhaps the request never arrived; if it did, nothing but its end is possible.
        cri.stop_pod(&pod.id)?;
        ensure!(cri.pod_status(&pod.id)?.state() == PodSandboxState::SandboxNotready, "still ready");
        ensure!(cri.status(&container)?.state() == ContainerState::ContainerExited, "still runs");
        nothing_left(&cri, &before, &format!("after {millis} ms"))?;
    }
    Ok(())
}
