//! Cases about what cannot be had: each wish is refused with its gRPC code and a sentence that names the cause and the remedy,
//! and leaves nothing.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{
    self as v1, ContainerConfig, ContainerState, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, container_config, pod_config};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{daemon, held};
use std::fs;
use std::process::{Command, ExitCode, Output};
use tonic::{Code, Status};

/// An id as ours, of nothing.
const UNKNOWN: &str = "0123456789abcdef0123456789abcdef";

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["refusal":
            pods_that_a_vm_cannot_be_are_refused_with_a_remedy,
            containers_that_a_vm_cannot_have_are_refused_with_a_remedy,
            names_that_are_taken_are_refused_with_their_holder,
            command_that_is_not_in_the_image_is_told_with_its_exit,
            unknown_ids_are_not_found_or_already_gone,
            unknown_configuration_key_is_named_with_its_place,
            absent_kvm_is_told_by_check_and_by_the_pod,
            kvm_that_is_none_is_told_by_check_and_by_the_pod,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    Ok(cri)
}

/// Whether a refusal has that code and all of the words.
fn is_told(what: &str, refused: &Status, code: Code, words: &[&str]) -> Result<()> {
    let all = words.iter().all(|word| refused.message().contains(word));
    ensure!(refused.code() == code && all, "{what}: not {code:?} with {words:?}: {refused:?}");
    Ok(())
}

fn linux(config: &mut PodSandboxConfig) -> &mut v1::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    linux(config).security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

fn pods_that_a_vm_cannot_be_are_refused_with_a_remedy() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    type Change = fn(&mut PodSandboxConfig);
    let node = i32::from(NamespaceMode::Node);
    ensure!(node == 2, "the changes below hold its number");
    let wishes: [(Change, &[&str]); 8] = [
        (|c| namespaces(c).network = 2, &["hostNetwork", "another RuntimeClass"]),
        (|c| namespaces(c).pid = 2, &["hostPID", "another RuntimeClass"]),
        (|c| namespaces(c).ipc = 2, &["hostIPC", "another RuntimeClass"]),
        (|c| c.metadata = None, &["metadata is missing"]),
        (|c| c.hostname = "two words".into(), &["\"two words\"", "host name"]),
        (|c| c.log_directory = "logs".into(), &["\"logs\"", "absolute path"]),
        (
            |c| linux(c).sysctls = [("kernel/../x".to_owned(), "1".to_owned())].into(),
            &["kernel/../x", "sysctl"],
        ),
        (|c| linux(c).cgroup_parent = "../up".into(), &["../up"]),
    ];
    for (change, words) in wishes {
        let mut config = pod_config("wish");
        change(&mut config);
        let refused = cri.run_pod_with(config).expect_err("a VM cannot be that");
        is_told("pod", &refused, Code::InvalidArgument, words)?;
    }
    let request = v1::RunPodSandboxRequest {
        config: Some(pod_config("handler")),
        runtime_handler: "no-such-handler".into(),
    };
    let refused = cri.wait(cri.service().run_pod_sandbox(request)).expect_err("no such handler");
    is_told(
        "handler",
        &refused,
        Code::InvalidArgument,
        &["\"no-such-handler\"", "[handlers.no-such-handler]"],
    )?;
    held::nothing_more_than(&before, "behind a refusal")
}

fn containers_that_a_vm_cannot_have_are_refused_with_a_remedy() -> Result<()> {
    let cri = cri()?;
    let empty = held::by_pods()?;
    let pod = cri.run_pod("wishes")?;
    let before = held::by_pods()?;
    fn mount(propagation: v1::MountPropagation) -> v1::Mount {
        let (host_path, container_path) = ("/etc".into(), "/x".into());
        v1::Mount { host_path, container_path, propagation: propagation.into(), ..Default::default() }
    }
    fn device(path: &str) -> v1::Device {
        v1::Device { host_path: path.into(), container_path: path.into(), permissions: "rwm".into() }
    }
    fn image(config: &mut ContainerConfig, name: &str) {
        config.image.get_or_insert_default().image = name.into();
    }
    type Change = fn(&mut ContainerConfig);
    let wishes: [(Change, Code, &[&str]); 8] = [
        (
            |c| c.mounts = vec![mount(v1::MountPropagation::PropagationPrivate)],
            Code::Unimplemented,
            &["/etc"],
        ),
        (
            |c| c.mounts = vec![mount(v1::MountPropagation::PropagationBidirectional)],
            Code::InvalidArgument,
            &["idirectional"],
        ),
        (|c| c.devices = vec![device("/dev/null")], Code::InvalidArgument, &["/dev/null"]),
        (|c| image(c, "127.0.0.1:5000/never/pulled"), Code::NotFound, &["never/pulled", "pull it first"]),
        (|c| image(c, "Not A Name"), Code::InvalidArgument, &["\"Not A Name\"", "a name looks like"]),
        (|c| c.log_path = "../../log".into(), Code::InvalidArgument, &["../../log", "relative path"]),
        (|c| c.metadata = None, Code::InvalidArgument, &["metadata.name"]),
        (
            |c| {
                let context = c.linux.get_or_insert_default().security_context.get_or_insert_default();
                context.namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
            },
            Code::InvalidArgument,
            &["hostPID"],
        ),
    ];
    for (change, code, words) in wishes {
        let mut config = container_config("wish", "busybox", &["true"]);
        change(&mut config);
        let refused = cri.create(&pod, config).expect_err("a container in a VM cannot have that");
        is_told("container", &refused, code, words)?;
        held::nothing_more_than(&before, "behind a refusal")?;
    }
    cri.clean()?;
    held::nothing_more_than(&empty, "behind a refusal")
}

fn names_that_are_taken_are_refused_with_their_holder() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("taken")?;
    let twice = cri.run_pod_with(pod.config.clone()).expect_err("the name is taken");
    is_told("pod", &twice, Code::AlreadyExists, &[&pod.id])?;
    let twice = cri.create(&pod, container_config("sleeper", "busybox", &["true"])).expect_err("it is taken");
    is_told("container", &twice, Code::AlreadyExists, &[&container])?;
    ensure!(cri.shell(&container, "echo fine")? == "fine", "the holder was hit");
    cri.clean()
}

fn command_that_is_not_in_the_image_is_told_with_its_exit() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("command")?;
    let container = cri.create(&pod, container_config("c", "busybox", &["/no/such/command"]));
    // Whether it is there can be known before anything runs, and is told no later than then.
    let (refused, container) = match container {
        Err(refused) => (refused, None),
        Ok(id) => (cri.start(&id).expect_err("there is no such command"), Some(id)),
    };
    is_told("command", &refused, Code::InvalidArgument, &["/no/such/command"])?;
    if let Some(id) = container {
        let status = cri.status(&id)?;
        ensure!(
            status.state() == ContainerState::ContainerExited && status.reason == "StartError",
            "{status:?}"
        );
        ensure!(status.exit_code == 128 && status.message.contains("/no/such/command"), "{status:?}");
    }
    cri.clean()
}

fn unknown_ids_are_not_found_or_already_gone() -> Result<()> {
    let cri = cri()?;
    let id = || UNKNOWN.to_owned();
    let create = v1::CreateContainerRequest {
        pod_sandbox_id: id(),
        config: Some(container_config("c", "busybox", &["true"])),
        sandbox_config: Some(pod_config("unknown")),
    };
    let stats = v1::PodSandboxStatsRequest { pod_sandbox_id: id() };
    let update = v1::UpdateContainerResourcesRequest { container_id: id(), ..Default::default() };
    let answers = [
        ("PodSandboxStatus", cri.pod_status(UNKNOWN).map(drop)),
        ("PodSandboxStats", cri.wait(cri.service().pod_sandbox_stats(stats)).map(drop)),
        ("CreateContainer", cri.wait(cri.service().create_container(create)).map(drop)),
        ("StartContainer", cri.start(UNKNOWN)),
        ("ContainerStatus", cri.status(UNKNOWN).map(drop)),
        ("ExecSync", cri.exec(UNKNOWN, &["true"]).map(drop)),
        ("UpdateContainerResources", cri.wait(cri.service().update_container_resources(update)).map(drop)),
        (
            "ReopenContainerLog",
            cri.wait(
                cri.service().reopen_container_log(v1::ReopenContainerLogRequest { container_id: id() }),
            )
            .map(drop),
        ),
        (
            "ContainerStats",
            cri.wait(cri.service().container_stats(v1::ContainerStatsRequest { container_id: id() }))
                .map(drop),
        ),
    ];
    for (call, answer) in answers {
        let refused = answer.err().with_context(|| format!("{call} of what is not there"))?;
        is_told(call, &refused, Code::NotFound, &[UNKNOWN])?;
    }
    cri.stop(UNKNOWN, 1)?;
    cri.remove(UNKNOWN)?;
    cri.stop_pod(UNKNOWN)?;
    cri.remove_pod(UNKNOWN)?;
    cri.remove_image(&format!("sha256:{UNKNOWN}{UNKNOWN}"))?;
    Ok(())
}

fn isopod(arguments: &[&str]) -> Result<Output> {
    Command::new("/usr/lib/isopod/isopod").args(arguments).output().context("isopod")
}

fn unknown_configuration_key_is_named_with_its_place() -> Result<()> {
    fs::create_dir_all("/run/case.toml.d")?;
    fs::write("/run/case.toml", "[vm]\nvcpus = 1\n")?;
    fs::write("/run/case.toml.d/10-more.toml", "[vm]\nvcpus = 1\nmemory_mb = 512\n")?;
    for command in ["serve", "check"] {
        let ran = isopod(&["--config", "/run/case.toml", command])?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(!ran.status.success(), "{command} runs");
        for word in ["/run/case.toml.d/10-more.toml", "line 3", "memory_mb"] {
            ensure!(said.contains(word), "{command} does not say {word}: {said}");
        }
    }
    Ok(())
}

/// What `isopod check` and `isopod serve` say without a usable KVM, and RunPodSandbox of a daemon that was there before.
fn told_without_kvm(cri: &Cri, words: &str) -> Result<()> {
    let before = held::by_pods()?;
    let refused = cri.run_pod("no-kvm").err().context("a pod without KVM")?;
    is_told("RunPodSandbox", &refused, Code::Internal, &["/dev/kvm"])?;
    ensure!(cri.pods()?.is_empty(), "it is listed");
    held::nothing_more_than(&before, "behind a refusal")?;
    let checked = isopod(&["check"])?;
    let table = String::from_utf8_lossy(&checked.stdout);
    let line = table.lines().find(|line| line.starts_with("kvm ")).unwrap_or_default();
    ensure!(checked.status.code() == Some(1) && line.contains("FAIL") && line.contains(words), "{table}");
    ensure!(table.contains("-> "), "no remedy: {table}");
    daemon::kill()?;
    let served = isopod(&["serve"])?;
    let said = String::from_utf8_lossy(&served.stderr);
    ensure!(!served.status.success() && said.contains("kvm") && said.contains("isopod check"), "{said}");
    Ok(())
}

fn absent_kvm_is_told_by_check_and_by_the_pod() -> Result<()> {
    let cri = cri()?;
    fs::rename("/dev/kvm", "/dev/kvm-aside")?;
    let outcome = told_without_kvm(&cri, "No such file");
    fs::rename("/dev/kvm-aside", "/dev/kvm")?;
    daemon::restart()?;
    outcome
}

fn kvm_that_is_none_is_told_by_check_and_by_the_pod() -> Result<()> {
    let cri = cri()?;
    let mount = |arguments: &[&str]| Command::new(arguments[0]).args(&arguments[1..]).status();
    ensure!(mount(&["mount", "--bind", "/dev/null", "/dev/kvm"])?.success(), "not mounted");
    let outcome = told_without_kvm(&cri, "KVM");
    ensure!(mount(&["umount", "/dev/kvm"])?.success(), "not unmounted");
    daemon::restart()?;
    outcome
}
