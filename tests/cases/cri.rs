//! Cases about the CRI: what kubelet and crictl ask, and what they are answered.

use anyhow::{Result, ensure};
use isopod_protocols::cri::{self as v1, ContainerState, PodSandboxState};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, container_config, image_name, wait_for};
use isopod_tests::held;
use isopod_tests::node::{Isopod, Settings};
use std::fs;
use std::process::{Command, ExitCode};
use tonic::Code;

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["cri":
            pod_runs_stops_and_leaves_nothing,
            container_goes_from_created_to_exited,
            two_pods_have_kernels_of_their_own,
            exec_gives_output_and_exit_code,
            exec_past_its_limit_is_killed_with_its_children,
            log_has_every_line_with_its_stream,
            log_is_reopened_after_rotation,
            container_shares_network_but_not_root_with_its_pod,
            lists_follow_their_filters,
            lists_can_be_streamed,
            stats_tell_cpu_and_memory,
            limits_hold_and_can_be_changed,
            oom_kill_is_told_as_such,
            stop_and_remove_twice_succeed,
            stop_signal_of_the_pod_wins,
            user_of_the_image_runs_its_process,
            crictl_speaks_to_it,
        ],
    )
}

/// Connects, and has the image that most cases use.
fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    Ok(cri)
}

fn pod_runs_stops_and_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let pod = cri.run_pod("lonely")?;
    let status = cri.pod_status(&pod.id)?;
    ensure!(status.state() == PodSandboxState::SandboxReady, "state {:?}", status.state());
    ensure!(status.metadata == pod.config.metadata, "metadata {:?}", status.metadata);
    ensure!(!status.network.unwrap_or_default().ip.is_empty(), "no address");
    cri.stop_pod(&pod.id)?;
    ensure!(cri.pod_status(&pod.id)?.state() == PodSandboxState::SandboxNotready, "still ready");
    cri.remove_pod(&pod.id)?;
    held::nothing_more_than(&before, "at the end")
}

fn container_goes_from_created_to_exited() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("life")?;
    let container = cri.create(&pod, container_config("c", "busybox", &["sh", "-c", "exit 7"]))?;
    ensure!(cri.status(&container)?.state() == ContainerState::ContainerCreated, "not created");
    cri.start(&container)?;
    let status = cri.wait_exited(&container)?;
    ensure!((status.exit_code, status.reason.as_str()) == (7, "Error"), "{status:?}");
    ensure!(
        status.created_at <= status.started_at && status.started_at <= status.finished_at,
        "times {status:?}"
    );
    let again = cri.start(&container).expect_err("a container starts once");
    ensure!(again.code() == Code::FailedPrecondition, "{again:?}");
    cri.clean()
}

fn two_pods_have_kernels_of_their_own() -> Result<()> {
    let cri = cri()?;
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let (_, one) = cri.run_sleeper("one")?;
    let (_, two) = cri.run_sleeper("two")?;
    let of_node = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let (one, two) = (cri.shell(&one, boot_id)?, cri.shell(&two, boot_id)?);
    ensure!(one != two && one != of_node.trim() && two != of_node.trim(), "boot ids {one}, {two}, {of_node}");
    cri.clean()
}

fn exec_gives_output_and_exit_code() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("exec")?;
    let ran = cri.exec(&container, &["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure!(
        (ran.stdout.as_slice(), ran.stderr.as_slice(), ran.exit_code) == (b"out\n", b"err\n", 3),
        "{ran:?}"
    );
    let large = cri.exec(&container, &["sh", "-c", "head -c 3000000 /dev/zero"])?;
    ensure!(large.stdout.len() == 3_000_000, "{} of 3000000 bytes came", large.stdout.len());
    let missing = cri.exec(&container, &["/no/such/program"]).expect_err("there is no such program");
    ensure!(missing.message().contains("/no/such/program"), "{missing:?}");
    cri.clean()
}

fn exec_past_its_limit_is_killed_with_its_children() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("limit")?;
    let late =
        cri.exec_for(&container, &["sh", "-c", "sleep 4242 & sleep 4242"], 1).expect_err("it takes too long");
    ensure!(late.code() == Code::DeadlineExceeded, "{late:?}");
    ensure!(cri.exec(&container, &["pgrep", "-f", "sleep 4242"])?.exit_code == 1, "a child is left");
    ensure!(cri.status(&container)?.state() == ContainerState::ContainerRunning, "the container was hit too");
    cri.clean()
}

fn log_has_every_line_with_its_stream() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("log")?;
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo oops >&2; printf tail";
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", script]))?;
    cri.wait_exited(&container)?;
    let log =
        wait_for("the log's last line", || Ok(Some(cri.log(&container)?).filter(|l| l.contains(" tail"))))?;
    let of_stdout = log.lines().filter(|l| l.contains(" stdout F line ")).count();
    ensure!(of_stdout == 2000, "{of_stdout} of 2000 lines");
    ensure!(log.lines().any(|l| l.ends_with(" stderr F oops")), "no line of stderr");
    ensure!(log.lines().any(|l| l.ends_with(" stdout F tail")), "no whole last line");
    cri.clean()
}

fn log_is_reopened_after_rotation() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("rotate")?;
    let script = "while true; do echo tick; sleep 0.2; done";
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", script]))?;
    let path = cri.status(&container)?.log_path;
    wait_for("a first line", || {
        Ok(Some(()).filter(|()| cri.log(&container).is_ok_and(|l| l.contains("tick"))))
    })?;
    std::fs::rename(&path, format!("{path}.1"))?;
    let request = v1::ReopenContainerLogRequest { container_id: container.clone() };
    cri.wait(cri.service().reopen_container_log(request))?;
    wait_for("a line in the new file", || {
        Ok(Some(()).filter(|()| cri.log(&container).is_ok_and(|l| l.contains("tick"))))
    })?;
    cri.clean()
}

fn container_shares_network_but_not_root_with_its_pod() -> Result<()> {
    let cri = cri()?;
    cri.pull("web")?;
    let pod = cri.run_pod("shared")?;
    cri.run_container(&pod, container_config("web", "web", &[]))?;
    let other = cri.run_container(&pod, container_config("other", "busybox", &["sleep", "1000"]))?;
    let page = wait_for("the web server", || Ok(cri.shell(&other, "wget -q -O - http://127.0.0.1/").ok()))?;
    ensure!(page.contains("Hello from a pod"), "{page}");
    ensure!(cri.shell(&other, "hostname")? == "shared", "other hostname");
    let third = cri.run_container(&pod, container_config("third", "busybox", &["sleep", "1000"]))?;
    cri.shell(&other, "touch /mine")?;
    ensure!(cri.exec(&third, &["test", "-e", "/mine"])?.exit_code == 1, "roots are shared");
    cri.clean()
}

fn lists_follow_their_filters() -> Result<()> {
    let cri = cri()?;
    let mut config = isopod_tests::cri::pod_config("labelled");
    config.labels.insert("app".into(), "x".into());
    let labelled = cri.run_pod_with(config)?;
    let other = cri.run_pod("other")?;
    cri.stop_pod(&other.id)?;
    let ids = |filter: v1::PodSandboxFilter| -> Result<Vec<String>> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let items = cri.wait(cri.service().list_pod_sandbox(request))?.items;
        Ok(items.into_iter().map(|pod| pod.id).collect())
    };
    let by_label = v1::PodSandboxFilter {
        label_selector: [("app".to_owned(), "x".to_owned())].into(),
        ..v1::PodSandboxFilter::default()
    };
    ensure!(ids(by_label)? == [labelled.id.clone()], "by label");
    let stopped = v1::PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() };
    let by_state = v1::PodSandboxFilter { state: Some(stopped), ..v1::PodSandboxFilter::default() };
    ensure!(ids(by_state)? == [other.id.clone()], "by state");
    let by_id = v1::PodSandboxFilter { id: labelled.id.clone(), ..v1::PodSandboxFilter::default() };
    ensure!(ids(by_id)? == [labelled.id], "by id");
    cri.clean()
}

fn lists_can_be_streamed() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("streamed")?;
    let pods = cri.collect(cri.service().stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default()))?;
    ensure!(pods.iter().flat_map(|chunk| &chunk.pod_sandboxes).any(|item| item.id == pod.id), "{pods:?}");
    let only = v1::ContainerFilter { id: container.clone(), ..Default::default() };
    let containers =
        cri.collect(cri.service().stream_containers(v1::StreamContainersRequest { filter: Some(only) }))?;
    ensure!(containers.len() == 1 && containers[0].containers[0].id == container, "{containers:?}");
    let images = cri.collect(cri.images().stream_images(v1::StreamImagesRequest::default()))?;
    ensure!(images.iter().any(|chunk| !chunk.images.is_empty()), "{images:?}");
    cri.clean()
}

fn stats_tell_cpu_and_memory() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("stats")?;
    cri.shell(&container, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")?;
    let request = v1::ListContainerStatsRequest::default();
    let all = cri.wait(cri.service().list_container_stats(request))?.stats;
    let of = |stats: &v1::ContainerStats| stats.attributes.as_ref().map(|a| a.id.clone());
    let stats = all.iter().find(|s| of(s).as_ref() == Some(&container));
    let stats = stats.ok_or_else(|| anyhow::anyhow!("the container is not in {all:?}"))?;
    let cpu = stats.cpu.unwrap_or_default();
    ensure!(cpu.timestamp > 0 && cpu.usage_core_nano_seconds.unwrap_or_default().value > 0, "{stats:?}");
    let memory = stats.memory.unwrap_or_default();
    ensure!(memory.working_set_bytes.unwrap_or_default().value > 0, "{stats:?}");
    cri.clean()
}

fn limits_hold_and_can_be_changed() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("limits")?;
    let mut config = container_config("c", "busybox", &["sleep", "1000"]);
    let limit = v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    config.linux = Some(v1::LinuxContainerConfig { resources: Some(limit), ..Default::default() });
    let container = cri.run_container(&pod, config)?;
    let read = || cri.shell(&container, "cat /sys/fs/cgroup/memory.max");
    ensure!(read()? == (32 << 20).to_string(), "memory.max {}", read()?);
    let more = v1::LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() };
    let request = v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(more),
        ..Default::default()
    };
    cri.wait(cri.service().update_container_resources(request))?;
    ensure!(read()? == (48 << 20).to_string(), "memory.max {} after the update", read()?);
    cri.clean()
}

fn oom_kill_is_told_as_such() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("oom")?;
    let mut config =
        container_config("c", "busybox", &["sh", "-c", "dd if=/dev/zero of=/dev/null bs=40M count=1"]);
    let limit = v1::LinuxContainerResources { memory_limit_in_bytes: 15 << 20, ..Default::default() };
    config.linux = Some(v1::LinuxContainerConfig { resources: Some(limit), ..Default::default() });
    let container = cri.run_container(&pod, config)?;
    let status = cri.wait_exited(&container)?;
    ensure!(status.reason == "OOMKilled", "{status:?}");
    cri.clean()
}

fn stop_and_remove_twice_succeed() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("twice")?;
    cri.stop(&container, 1)?;
    cri.stop(&container, 1)?;
    cri.remove(&container)?;
    cri.remove(&container)?;
    cri.stop_pod(&pod.id)?;
    cri.stop_pod(&pod.id)?;
    cri.remove_pod(&pod.id)?;
    cri.remove_pod(&pod.id)?;
    cri.stop("0123456789abcdef", 0)?;
    cri.remove_pod("0123456789abcdef")?;
    Ok(())
}

fn stop_signal_of_the_pod_wins() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("signal")?;
    let config = serde_json::json!({
        "metadata": { "name": "c" }, "image": { "image": image_name("busybox") }, "log_path": "c.log",
        "command": ["sh", "-c", "trap 'exit 3' USR1; echo ready; while :; do sleep 0.1; done"],
        "stop_signal": 29, // SIGUSR1 of the CRI
    });
    fs::write("/tmp/container.json", config.to_string())?;
    let pod_config =
        serde_json::json!({ "metadata": pod.config.metadata, "log_directory": pod.config.log_directory });
    fs::write("/tmp/pod.json", pod_config.to_string())?;
    let container = crictl(&["create", &pod.id, "/tmp/container.json", "/tmp/pod.json"])?.trim().to_owned();
    cri.start(&container)?;
    wait_for("the trap", || Ok(cri.log(&container)?.contains("ready").then_some(())))?;
    ensure!(crictl(&["inspect", &container])?.contains("SIGUSR1"), "the status does not tell the signal");
    cri.stop(&container, 30)?;
    ensure!(cri.status(&container)?.exit_code == 3, "{:?}", cri.status(&container)?);
    cri.clean()
}

fn user_of_the_image_runs_its_process() -> Result<()> {
    let cri = cri()?;
    cri.pull("user")?;
    let pod = cri.run_pod("user")?;
    let container = cri.run_container(&pod, container_config("c", "user", &["sleep", "1000"]))?;
    ensure!(cri.shell(&container, "id -u; id -g")? == "1500\n1600", "{}", cri.shell(&container, "id")?);
    let user = cri.status(&container)?.user.and_then(|u| u.linux).unwrap_or_default();
    ensure!((user.uid, user.gid) == (1500, 1600), "{user:?}");
    let mut nobody = container_config("nobody", "busybox", &["sleep", "1"]);
    let context =
        v1::LinuxContainerSecurityContext { run_as_username: "no-such-user".into(), ..Default::default() };
    nobody.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    let refused = cri.create(&pod, nobody).expect_err("there is no such user");
    ensure!(
        refused.code() == Code::InvalidArgument && refused.message().contains("no-such-user"),
        "{refused:?}"
    );
    cri.clean()
}

fn crictl_speaks_to_it() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("crictl")?;
    let image = image_name("busybox");
    for arguments in [
        vec!["version"],
        vec!["info"],
        vec!["pods"],
        vec!["ps"],
        vec!["images"],
        vec!["inspecti", &image],
        vec!["inspect", &container],
        vec!["stats"],
        vec!["statsp"],
        vec!["imagefsinfo"],
        vec!["exec", "-s", &container, "true"],
    ] {
        crictl(&arguments)?;
    }
    cri.clean()
}

fn crictl(arguments: &[&str]) -> Result<String> {
    let ran = Command::new("crictl").args(arguments).output()?;
    ensure!(ran.status.success(), "crictl {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8(ran.stdout)?)
}
