//! Cases about failure: every operation at every step, every process killed, at rest and in the middle.

use anyhow::{Context, Result, ensure};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config, wait_for};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{daemon, held};
use k8s_cri::v1::{ContainerState, PodSandboxState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tonic::{Code, Status};

/// No operation has as many steps.
const MOST_STEPS: u32 = 40;

/// The undo stacks of RunPodSandbox: two of its strands run at the same time.
const RUN_POD_SANDBOX: [&str; 3] = ["RunPodSandbox", "RunPodSandbox.network", "RunPodSandbox.vm"];

fn main() -> ExitCode {
    let settings = Settings {
        isopod: Isopod::Serving,
        registry: true,
        timeout: Duration::from_secs(1800),
        ..Settings::default()
    };
    isopod_tests::case::run(
        settings,
        cases!["failure":
            run_pod_sandbox_failing_at_any_step_leaves_nothing,
            create_container_failing_at_any_step_leaves_nothing,
            pull_image_failing_at_any_step_leaves_nothing,
            daemon_killed_at_any_step_of_run_pod_sandbox_leaves_nothing,
            daemon_killed_at_rest_keeps_pods_logs_and_lists,
            vmm_killed_makes_the_pod_not_ready_and_leaves_others_alone,
            vmm_killed_during_exec_fails_the_exec_soon,
            container_init_killed_in_its_guest_is_told_as_exited,
            missing_kernel_is_named,
            corrupt_kernel_is_named,
            guest_that_never_answers_is_told_with_its_console,
            concurrent_stops_and_removes_of_one_pod_succeed,
        ],
    )
}

fn cri() -> Result<Cri> {
    daemon::order_fault(None)?;
    daemon::restart()?;
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    cri.clean()?;
    Ok(cri)
}

fn nothing_left(before: &BTreeSet<String>, when: &str) -> Result<()> {
    let left = held::leftovers(before)?;
    ensure!(left.is_empty(), "left {when}: {left:#?}");
    Ok(())
}

/// Fails an operation after its first step, its second, and so on, until it gets through; looks each time.
fn fail_at_each_step<T>(
    operation: &str,
    before: &BTreeSet<String>,
    mut run: impl FnMut() -> Result<T, Status>,
) -> Result<T> {
    for step in 1..MOST_STEPS {
        daemon::order_fault(Some(&format!("{operation} {step}")))?;
        let outcome = run();
        daemon::order_fault(None)?;
        match outcome {
            Ok(done) => {
                ensure!(step > 1, "{operation} has no steps");
                return Ok(done);
            }
            Err(status) => {
                ensure!(status.message().contains("on purpose"), "step {step}: {status:?}");
                nothing_left(before, &format!("after {operation} failed at step {step}"))?;
            }
        }
    }
    anyhow::bail!("{operation} has {MOST_STEPS} steps or more")
}

fn run_pod_sandbox_failing_at_any_step_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    for strand in RUN_POD_SANDBOX {
        let pod = fail_at_each_step(strand, &before, || cri.run_pod("steps"))?;
        cri.remove_pod(&pod.id)?;
        nothing_left(&before, "at the end")?;
    }
    Ok(())
}

fn create_container_failing_at_any_step_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let empty = held::by_pods()?;
    let pod = cri.run_pod("steps")?;
    let before = held::by_pods()?;
    let config = || container_config("c", "busybox", &["sleep", "1000"]);
    let container = fail_at_each_step("CreateContainer", &before, || cri.create(&pod, config()))?;
    cri.start(&container)?;
    cri.remove(&container)?;
    nothing_left(&before, "of the container")?;
    cri.remove_pod(&pod.id)?;
    nothing_left(&empty, "of the pod")
}

fn pull_image_failing_at_any_step_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let files = || -> Result<BTreeSet<String>> {
        let found = Command::new("find").args(["/var/lib/isopod/images", "-type", "f"]).output()?;
        Ok(String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect())
    };
    let image = isopod_tests::cri::image_name("zstd");
    let remove = |name: &str| {
        let spec = k8s_cri::v1::ImageSpec { image: name.into(), ..Default::default() };
        cri.wait(cri.images().remove_image(k8s_cri::v1::RemoveImageRequest { image: Some(spec) }))
    };
    remove(&image)?;
    let (before, held_before) = (files()?, held::by_pods()?);
    for step in 1..MOST_STEPS {
        daemon::order_fault(Some(&format!("PullImage {step}")))?;
        let outcome = cri.pull("zstd");
        daemon::order_fault(None)?;
        if outcome.is_ok() {
            ensure!(step > 1, "PullImage has no steps");
            return Ok(remove(&image).map(drop)?);
        }
        wait_for("files of the failed pull to go", || {
            Ok(Some(()).filter(|()| files().is_ok_and(|now| now == before)))
        })
        .with_context(|| format!("step {step}"))?;
        nothing_left(&held_before, &format!("after PullImage failed at step {step}"))?;
    }
    anyhow::bail!("PullImage has {MOST_STEPS} steps or more")
}

fn daemon_killed_at_any_step_of_run_pod_sandbox_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    RUN_POD_SANDBOX.iter().try_for_each(|strand| die_at_each_step(&cri, strand, &before))
}

fn die_at_each_step(cri: &Cri, strand: &str, before: &BTreeSet<String>) -> Result<()> {
    for step in 1..MOST_STEPS {
        daemon::order_fault(Some(&format!("{strand} {step} abort")))?;
        let outcome = cri.run_pod("abort");
        daemon::order_fault(None)?;
        if let Ok(pod) = outcome {
            ensure!(step > 1, "{strand} has no steps");
            cri.remove_pod(&pod.id)?;
            return nothing_left(before, "at the end");
        }
        daemon::wait_gone()?;
        daemon::start()?;
        // A pod whose VM was up may be served as one that is to be removed.
        cri.clean()?;
        nothing_left(before, &format!("after the daemon died at step {step} of {strand}"))?;
    }
    anyhow::bail!("{strand} has {MOST_STEPS} steps or more")
}

fn daemon_killed_at_rest_keeps_pods_logs_and_lists() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("survivor")?;
    let script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; sleep 1000";
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", script]))?;
    wait_for("some output", || {
        Ok(Some(()).filter(|()| cri.log(&container).is_ok_and(|l| l.contains("line 20"))))
    })?;
    let (pods, containers) = (cri.pods()?, cri.containers()?);
    daemon::kill()?;
    std::thread::sleep(Duration::from_secs(1));
    daemon::start()?;
    ensure!(cri.pods()? == pods && cri.containers()? == containers, "the lists are others after the restart");
    ensure!(cri.pod_status(&pod.id)?.state() == PodSandboxState::SandboxReady, "the pod is not ready");
    let log =
        wait_for("the last line", || Ok(Some(cri.log(&container)?).filter(|l| l.contains("line 299"))))?;
    for i in 0..300 {
        ensure!(log.lines().any(|l| l.ends_with(&format!("F line {i}"))), "line {i} is lost");
    }
    ensure!(cri.shell(&container, "echo alive")? == "alive", "exec after the restart");
    cri.stop(&container, 0)?;
    ensure!(cri.status(&container)?.state() == ContainerState::ContainerExited, "not stopped");
    cri.clean()
}

/// The VMM of a pod, by its cgroup.
fn vmm_of(pod: &Pod) -> Result<Pid> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let Ok(cgroup) = fs::read_to_string(path.join("cgroup")) else { continue };
        if name.trim() == "isopod-vmm" && cgroup.contains(&pod.id) {
            let pid = path.file_name().and_then(|n| n.to_str()).context("a pid")?;
            return Ok(Pid::from_raw(pid.parse()?));
        }
    }
    anyhow::bail!("pod {} has no VMM", pod.id)
}

fn vmm_killed_makes_the_pod_not_ready_and_leaves_others_alone() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let (victim, container) = cri.run_sleeper("victim")?;
    let (_, other) = cri.run_sleeper("other")?;
    kill(vmm_of(&victim)?, Signal::SIGKILL)?;
    let status = cri.wait_exited(&container)?;
    ensure!((status.exit_code, status.reason.as_str()) == (255, "Unknown"), "{status:?}");
    ensure!(
        cri.pod_status(&victim.id)?.state() == PodSandboxState::SandboxNotready,
        "the pod is still ready"
    );
    let refused = cri.exec(&container, &["true"]).expect_err("it is gone");
    ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
    ensure!(cri.shell(&other, "echo fine")? == "fine", "the other pod was hit");
    cri.clean()?;
    nothing_left(&before, "of a killed VM")
}

fn vmm_killed_during_exec_fails_the_exec_soon() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let (pod, container) = cri.run_sleeper("busy")?;
    let vmm = vmm_of(&pod)?;
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        kill(vmm, Signal::SIGKILL)
    });
    let begin = std::time::Instant::now();
    ensure!(cri.exec_for(&container, &["sleep", "300"], 300).is_err(), "an exec outlived its VM");
    ensure!(begin.elapsed() < Duration::from_secs(60), "it took {:?}", begin.elapsed());
    killer.join().expect("the killer does not panic")?;
    cri.clean()?;
    nothing_left(&before, "of a VM killed during an exec")
}

fn container_init_killed_in_its_guest_is_told_as_exited() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("suicide")?;
    let script = "sleep 1; kill -9 $$";
    // A pid namespace's first process cannot kill itself with SIGKILL: it runs below a shell that exits as it did.
    let outer = format!("sh -c '{script}'; exit $?");
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", &outer]))?;
    let status = cri.wait_exited(&container)?;
    ensure!(status.exit_code == 137, "{status:?}");
    cri.clean()
}

/// Serves with another kernel or other settings while `story` is told.
fn with_configuration(text: &str, story: impl FnOnce(&Cri) -> Result<()>) -> Result<()> {
    let drop_in = "/etc/isopod/config.toml.d/50-case.toml";
    fs::create_dir_all("/etc/isopod/config.toml.d")?;
    let cri = cri()?;
    // The daemon looks at its files when it starts; the kernel's file is looked at for each pod.
    fs::write(drop_in, text)?;
    let outcome = daemon::restart().and_then(|()| story(&cri));
    fs::remove_file(drop_in)?;
    daemon::restart()?;
    outcome
}

fn missing_kernel_is_named() -> Result<()> {
    fs::copy("/usr/lib/isopod/vmlinux", "/run/vmlinux-case")?;
    with_configuration("[vm]\nkernel = \"/run/vmlinux-case\"\n", |cri| {
        let before = held::by_pods()?;
        fs::remove_file("/run/vmlinux-case")?;
        let refused = cri.run_pod("no-kernel").expect_err("there is no kernel");
        ensure!(refused.message().contains("/run/vmlinux-case"), "{refused:?}");
        nothing_left(&before, "without a kernel")
    })
}

fn corrupt_kernel_is_named() -> Result<()> {
    fs::copy("/usr/lib/isopod/vmlinux", "/run/vmlinux-case")?;
    with_configuration("[vm]\nkernel = \"/run/vmlinux-case\"\n", |cri| {
        let before = held::by_pods()?;
        fs::write("/run/vmlinux-case", "not a kernel")?;
        let refused = cri.run_pod("bad-kernel").expect_err("that is no kernel");
        ensure!(refused.message().contains("kernel"), "{refused:?}");
        nothing_left(&before, "with a corrupt kernel")
    })
}

fn guest_that_never_answers_is_told_with_its_console() -> Result<()> {
    let text =
        "[vm]\nboot_timeout_s = 8\nkernel_args = [\"init=/no/such/init\", \"panic=0\", \"loglevel=7\"]\n";
    with_configuration(text, |cri| {
        let before = held::by_pods()?;
        let refused = cri.run_pod("mute").expect_err("its agent never runs");
        ensure!(refused.message().contains("/no/such/init"), "the console is not quoted: {refused:?}");
        nothing_left(&before, "of a guest that never answered")
    })
}

fn concurrent_stops_and_removes_of_one_pod_succeed() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let (pod, _) = cri.run_sleeper("crowd")?;
    let request = || k8s_cri::v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let outcomes = cri.block_on(async {
        let calls = (0..8).map(|_| {
            let mut service = cri.service();
            let request = request();
            tokio::spawn(async move { service.remove_pod_sandbox(request).await })
        });
        let mut outcomes = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            outcomes.push(call.await);
        }
        outcomes
    });
    for outcome in outcomes {
        outcome??;
    }
    nothing_left(&before, "after eight removes")
}
