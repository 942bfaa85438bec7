//! Cases about failure: every operation failing, and the daemon dying, at every step; guests that cannot start.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{ContainerState, PodSandboxState};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, container_config, wait_for};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{daemon, held, templates};
use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
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
            stop_pod_sandbox_failing_at_any_step_can_be_repeated,
            daemon_killed_at_any_step_of_run_pod_sandbox_leaves_nothing,
            daemon_killed_at_any_step_of_create_container_leaves_a_pod_that_works,
            daemon_killed_at_any_step_of_start_container_loses_no_output,
            daemon_killed_at_any_step_of_stop_pod_sandbox_has_it_stopped_again,
            daemon_killed_at_any_step_of_pull_image_leaves_nothing,
            missing_kernel_is_named,
            corrupt_kernel_is_named,
            guest_that_never_answers_is_told_with_its_console,
            concurrent_stops_and_removes_of_one_pod_succeed,
            released_daemon_ignores_faults_that_are_ordered,
        ],
    )
}

fn cri() -> Result<Cri> {
    daemon::order_fault(None)?;
    daemon::restart()?;
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    cri.clean()?;
    templates::settled(&cri)?;
    Ok(cri)
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
                held::nothing_more_than(before, &format!("after {operation} failed at step {step}"))?;
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
        held::nothing_more_than(&before, "at the end")?;
    }
    Ok(())
}

fn released_daemon_ignores_faults_that_are_ordered() -> Result<()> {
    drop(cri()?);
    daemon::kill()?;
    daemon::start_released()?;
    let cri = Cri::connect()?;
    daemon::order_fault(Some("RunPodSandbox 1"))?;
    let outcome = cri.run_pod("fine");
    daemon::order_fault(None)?;
    cri.remove_pod(&outcome.context("the fault was not ignored")?.id)?;
    daemon::restart()
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
    held::nothing_more_than(&before, "of the container")?;
    cri.remove_pod(&pod.id)?;
    held::nothing_more_than(&empty, "of the pod")
}

/// The undo stacks of PullImage: each layer has its own.
const PULL_IMAGE: [&str; 2] = ["PullImage", "PullLayer"];

fn pull_image_failing_at_any_step_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    cri.remove_image("zstd")?;
    let (before, images) = (held::by_pods()?, held::of_images());
    for strand in PULL_IMAGE {
        fail_at_each_step(strand, &before, || {
            cri.pull("zstd").map_err(|status| match held::images_as_before(&images, "by a failed pull") {
                Ok(()) => status,
                Err(left) => Status::internal(format!("{left:#}, after {status:?}")),
            })
        })?;
        cri.remove_image("zstd")?;
    }
    Ok(())
}

fn stop_pod_sandbox_failing_at_any_step_can_be_repeated() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    for step in 1..MOST_STEPS {
        let (pod, _) = cri.run_sleeper("stop")?;
        daemon::order_fault(Some(&format!("StopPodSandbox {step}")))?;
        let outcome = cri.stop_pod(&pod.id);
        daemon::order_fault(None)?;
        ensure!(cri.pod_status(&pod.id)?.state() == PodSandboxState::SandboxNotready, "still ready");
        cri.stop_pod(&pod.id)?;
        cri.remove_pod(&pod.id)?;
        held::nothing_more_than(&before, &format!("after StopPodSandbox failed at step {step}"))?;
        if let Err(status) = outcome {
            ensure!(status.message().contains("on purpose"), "step {step}: {status:?}");
            continue;
        }
        ensure!(step > 1, "StopPodSandbox has no steps");
        return Ok(());
    }
    anyhow::bail!("StopPodSandbox has {MOST_STEPS} steps or more")
}

/// Has the daemon die after an operation's first step, its second, and so on, until it gets through; a new daemon runs when
/// `look` looks each time.
fn die_at_each_step<T>(
    operation: &str,
    mut run: impl FnMut() -> Result<T, Status>,
    mut look: impl FnMut(&str) -> Result<()>,
) -> Result<T> {
    for step in 1..MOST_STEPS {
        daemon::order_fault(Some(&format!("{operation} {step} abort")))?;
        let outcome = run();
        daemon::order_fault(None)?;
        if let Ok(done) = outcome {
            ensure!(step > 1, "{operation} has no steps");
            return Ok(done);
        }
        daemon::wait_gone()?;
        daemon::start()?;
        let when = format!("after the daemon died at step {step} of {operation}");
        look(&when).context(when)?;
    }
    anyhow::bail!("{operation} has {MOST_STEPS} steps or more")
}

fn daemon_killed_at_any_step_of_run_pod_sandbox_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    for strand in RUN_POD_SANDBOX {
        // A pod whose VM was up may be served as one that is to be removed.
        let look = |when: &str| cri.clean().and_then(|()| held::nothing_more_than(&before, when));
        let pod = die_at_each_step(strand, || cri.run_pod("abort"), look)?;
        cri.remove_pod(&pod.id)?;
        held::nothing_more_than(&before, "at the end")?;
    }
    Ok(())
}

fn daemon_killed_at_any_step_of_create_container_leaves_a_pod_that_works() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let pod = cri.run_pod("abort")?;
    let vmm = held::vmm_of(&pod)?;
    let no_layers = held::layers_of(vmm);
    let config = || container_config("c", "busybox", &["sleep", "1000"]);
    let look = |_: &str| {
        // One that was made just before may be served: kubelet removes what it does not know.
        cri.containers()?.iter().try_for_each(|container| cri.remove(&container.id))?;
        wait_for("layers to be detached", || Ok((held::layers_of(vmm) == no_layers).then_some(())))?;
        let container = cri.run_container(&pod, config())?;
        ensure!(cri.shell(&container, "cat /data/changed")? == "second", "its root is not whole");
        ensure!(held::layers_of(vmm).len() > no_layers.len(), "a container has layers, and none is found");
        Ok(cri.remove(&container)?)
    };
    die_at_each_step("CreateContainer", || cri.create(&pod, config()), look)?;
    let log = fs::read_to_string(daemon::LOG)?;
    ensure!(log.contains("half-made container is removed"), "it stays in the guest");
    cri.clean()?;
    held::nothing_more_than(&before, "of the pod")
}

fn daemon_killed_at_any_step_of_start_container_loses_no_output() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("abort")?;
    let attempt = std::cell::Cell::new(0);
    let create = || {
        let mut config = container_config("c", "busybox", &["sh", "-c", "echo first line; exec sleep 1000"]);
        config.metadata.get_or_insert_default().attempt = attempt.replace(attempt.get() + 1);
        cri.create(&pod, config)
    };
    let container = std::cell::RefCell::new(create()?);
    let run = || {
        let of = container.borrow().clone();
        cri.start(&of)
    };
    let look = |_: &str| {
        let of = container.replace(create()?);
        // Where it does not run yet, it can be started now; where it does, that is said and changes nothing.
        if let Err(refused) = cri.start(&of) {
            ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
        }
        cri.wait_logged(&of, "first line")?;
        ensure!(cri.status(&of)?.state() == ContainerState::ContainerRunning, "{:?}", cri.status(&of)?);
        Ok(cri.remove(&of)?)
    };
    die_at_each_step("StartContainer", run, look)?;
    cri.clean()
}

fn daemon_killed_at_any_step_of_stop_pod_sandbox_has_it_stopped_again() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let pod = std::cell::RefCell::new(cri.run_sleeper("abort")?.0);
    let run = || {
        let id = pod.borrow().id.clone();
        cri.stop_pod(&id)
    };
    let look = |when: &str| {
        let id = pod.borrow().id.clone();
        ensure!(cri.pod_status(&id)?.state() == PodSandboxState::SandboxNotready, "it is ready again");
        ensure!(
            cri.containers()?.iter().all(|c| c.state() == ContainerState::ContainerExited),
            "a container runs on"
        );
        cri.stop_pod(&id)?;
        cri.remove_pod(&id)?;
        held::nothing_more_than(&before, when)?;
        pod.replace(cri.run_sleeper("abort")?.0);
        Ok(())
    };
    die_at_each_step("StopPodSandbox", run, look)?;
    cri.clean()?;
    held::nothing_more_than(&before, "at the end")
}

fn daemon_killed_at_any_step_of_pull_image_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    cri.remove_image("zstd")?;
    let images = held::of_images();
    for strand in PULL_IMAGE {
        die_at_each_step(strand, || cri.pull("zstd"), |when| held::images_as_before(&images, when))?;
        cri.remove_image("zstd")?;
    }
    Ok(())
}

fn missing_kernel_is_named() -> Result<()> {
    fs::copy("/usr/lib/isopod/vmlinux", "/run/vmlinux-case")?;
    daemon::configured("[vm]\nkernel = \"/run/vmlinux-case\"\n", |cri| {
        let before = held::by_pods()?;
        fs::remove_file("/run/vmlinux-case")?;
        let refused = cri.run_pod("no-kernel").expect_err("there is no kernel");
        ensure!(refused.message().contains("/run/vmlinux-case"), "{refused:?}");
        held::nothing_more_than(&before, "without a kernel")
    })
}

fn corrupt_kernel_is_named() -> Result<()> {
    fs::copy("/usr/lib/isopod/vmlinux", "/run/vmlinux-case")?;
    daemon::configured("[vm]\nkernel = \"/run/vmlinux-case\"\n", |cri| {
        let before = held::by_pods()?;
        fs::write("/run/vmlinux-case", "not a kernel")?;
        let refused = cri.run_pod("bad-kernel").expect_err("that is no kernel");
        ensure!(refused.message().contains("kernel"), "{refused:?}");
        held::nothing_more_than(&before, "with a corrupt kernel")
    })
}

fn guest_that_never_answers_is_told_with_its_console() -> Result<()> {
    let text =
        "[vm]\nboot_timeout_s = 8\nkernel_args = [\"init=/no/such/init\", \"panic=0\", \"loglevel=7\"]\n";
    daemon::configured(text, |cri| {
        let before = held::by_pods()?;
        let refused = cri.run_pod("mute").expect_err("its agent never runs");
        ensure!(refused.message().contains("/no/such/init"), "the console is not quoted: {refused:?}");
        held::nothing_more_than(&before, "of a guest that never answered")
    })
}

fn concurrent_stops_and_removes_of_one_pod_succeed() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let (pod, _) = cri.run_sleeper("crowd")?;
    let request = || isopod_protocols::cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
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
    held::nothing_more_than(&before, "after eight removes")
}
