//! Cases of containers that try to leave their container, seen from the attacker's side: the guest's devices, its processes, its
//! kernel, the users of its images. Whether a VM's guest leaves the VM is the matter of `security` and `vm`.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{
    self as v1, Capability, ContainerConfig, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext,
};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config};
use isopod_tests::image::{Image, file, layer};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::registry::Registry;
use serde_json::json;
use std::process::ExitCode;
use tonic::Code;

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["isolation":
            root_of_a_container_opens_none_of_its_guests_devices,
            privileged_container_opens_its_guests_devices,
            holder_of_the_pods_processes_leads_nowhere,
            exec_changes_no_device_of_the_guest,
            kernel_log_is_not_for_containers,
            number_of_an_image_user_is_never_a_name,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    Ok(cri)
}

fn sleeper(name: &str, linux: Option<LinuxContainerConfig>) -> ContainerConfig {
    ContainerConfig { linux, ..container_config(name, "busybox", &["sleep", "100000"]) }
}

fn with_context(context: LinuxContainerSecurityContext) -> Option<LinuxContainerConfig> {
    Some(LinuxContainerConfig { security_context: Some(context), ..LinuxContainerConfig::default() })
}

/// Makes a node of every block device that the kernel lists and tries to read its first bytes; prints a line for each with the device
/// and what came of it.
const READ_ALL_DISKS: &str = r#"
    tail -n +3 /proc/partitions | while read major minor blocks name; do
        mknod /tmp/$name b $major $minor
        if head -c 16 /tmp/$name >/dev/null 2>/tmp/told; then echo "$name opened"; else echo "$name $(cat /tmp/told)"; fi
    done"#;

fn root_of_a_container_opens_none_of_its_guests_devices() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("devices")?;
    let limits = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let limited = LinuxContainerConfig { resources: Some(limits), ..Default::default() };
    let all = Capability { add_capabilities: vec!["ALL".into()], ..Default::default() };
    let capable = LinuxContainerSecurityContext { capabilities: Some(all), ..Default::default() };
    for (name, linux) in [("plain", None), ("limited", Some(limited)), ("capable", with_context(capable))] {
        let container = cri.run_container(&pod, sleeper(name, linux))?;
        let told = cri.shell(&container, READ_ALL_DISKS)?;
        ensure!(told.contains("vda"), "{name} sees no disk, so that the case says nothing: {told}");
        for line in told.lines() {
            ensure!(line.contains("Operation not permitted"), "{name}: {line}");
        }
        let refused = cri.shell(&container, "mknod /tmp/kmsg c 1 11 && ! head -c 1 /tmp/kmsg 2>&1")?;
        ensure!(refused.contains("Operation not permitted"), "{name}: /dev/kmsg: {refused}");
        // Of no bytes: where it opens, a read waits for a key.
        let refused = cri.shell(&container, "mknod /tmp/console c 5 1 && ! head -c 0 /tmp/console 2>&1")?;
        ensure!(refused.contains("Operation not permitted"), "{name}: the guest's console: {refused}");
        // What every container has also works where a container made the node itself, as chroots of old servers do.
        cri.shell(
            &container,
            "mknod /tmp/zero c 1 5 && head -c 16 /tmp/zero >/dev/null && echo x >/dev/null",
        )?;
    }
    cri.clean()
}

fn privileged_container_opens_its_guests_devices() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("privileged")?;
    let context = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let container = cri.run_container(&pod, sleeper("c", with_context(context)))?;
    let told = cri.shell(&container, READ_ALL_DISKS)?;
    ensure!(told.lines().any(|line| line == "vda opened"), "{told}");
    cri.clean()
}

fn holder_of_the_pods_processes_leads_nowhere() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("holder")?;
    let trace = Capability { add_capabilities: vec!["SYS_PTRACE".into()], ..Default::default() };
    let context = LinuxContainerSecurityContext { capabilities: Some(trace), ..Default::default() };
    let container = cri.run_container(&pod, sleeper("c", with_context(context)))?;
    // The pod's containers share a pid namespace, whose first process is the agent's.
    let seen = cri.shell(&container, "ls -A /proc/1/root/ /proc/1/cwd/; ls /proc/1/fd")?;
    let names: Vec<&str> = seen.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    ensure!(names.is_empty(), "the first process of the pod shows {names:?}");
    // A process's root is no barrier to others who come in by it: `..` goes on to what its root is mounted
    // in.
    let above = cri.shell(&container, "ls -A /proc/1/root/../../..; ls -A /proc/1/cwd/../../..")?;
    ensure!(above.is_empty(), "above the root of the pod's first process is {above:?}");
    let mounts = cri.shell(&container, "wc -l </proc/1/mountinfo")?;
    ensure!(mounts.trim() == "1", "the first process of the pod has {mounts} mounts");
    let status = cri.shell(&container, "cat /proc/1/status")?;
    let none = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:\t{:016x}", 0));
    let others = [
        "Uid:\t65535\t65535\t65535\t65535",
        "Gid:\t65535\t65535\t65535\t65535",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ];
    for line in none.into_iter().chain(others.map(str::to_owned)) {
        ensure!(
            status.lines().any(|had| had == line),
            "the first process of the pod lacks {line:?}: {status}"
        );
    }
    cri.clean()
}

fn exec_changes_no_device_of_the_guest() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("null")?;
    let other = cri.run_container(&pod, sleeper("other", None))?;
    let mode = "stat -L -c %a /proc/self/fd/0";
    // A process without input reads a null device. Changed by an exec, then by a first process.
    let changed = cri.shell(&container, &format!("chmod 600 /proc/self/fd/0 && {mode}"))?;
    ensure!(changed == "600", "the exec has changed nothing, so that the case says nothing: {changed}");
    ensure!(cri.shell(&other, mode)? == "666", "an exec changed the device of another container");
    let script = "chmod 600 /proc/self/fd/0 && echo changed; exec sleep 100000";
    let first = cri.run_container(&pod, container_config("first", "busybox", &["sh", "-c", script]))?;
    cri.wait_logged(&first, "changed")?;
    ensure!(cri.shell(&other, mode)? == "666", "a first process changed the device of another container");
    // What else there is at its path is neither taken nor waited for.
    cri.shell(&container, "rm /dev/null && mknod /dev/null p")?;
    let read = cri.exec(&container, &["head", "-c", "1"])?;
    ensure!(read.exit_code == 0 && read.stdout.is_empty(), "{read:?}");
    cri.clean()
}

fn kernel_log_is_not_for_containers() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("log")?;
    let user = LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: 1000 }),
        ..Default::default()
    };
    for (name, linux) in [("root", None), ("user", with_context(user))] {
        let container = cri.run_container(&pod, sleeper(name, linux))?;
        let told = cri.exec(&container, &["dmesg"])?;
        let error = String::from_utf8_lossy(&told.stderr);
        ensure!(told.exit_code != 0 && told.stdout.is_empty(), "{name} reads the kernel's log: {told:?}");
        ensure!(error.contains("Operation not permitted"), "{name}: {error}");
    }
    cri.clean()
}

fn number_of_an_image_user_is_never_a_name() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("numbers")?;
    for number in ["4294967295", "4294967296", "99999999999999999999", "-5"] {
        let passwd = format!("root:x:0:0:root:/root:/bin/sh\n{number}:x:0:0:root:/root:/bin/sh\n");
        let told = refusal(&cri, &pod, number, &passwd)?;
        ensure!(told.code() == Code::InvalidArgument, "{number}: {told:?}");
        ensure!(
            told.message().contains(number) && told.message().contains("is no user"),
            "{number}: {told:?}"
        );
    }
    // As kubelet asks for what the image's status tells it.
    let asked = LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: u32::MAX.into() }),
        ..Default::default()
    };
    let told = cri.create(&pod, sleeper("asked", with_context(asked))).expect_err("no id");
    ensure!(told.message().contains("run_as_user: 4294967295 is no id"), "{told:?}");
    cri.clean()
}

/// What creating a container of an image says that has this user and this `/etc/passwd`.
fn refusal(cri: &Cri, pod: &Pod, user: &str, passwd: &str) -> Result<tonic::Status> {
    let image =
        Image::based_on("busybox")?.layer(layer(&[file("etc/passwd", passwd)])).config(json!({"User": user}));
    let layouts = tempfile::tempdir()?;
    image.write(layouts.path(), "numbers")?;
    let name = Registry::serve_layouts(layouts.path(), |_, honest| honest)?.name("numbers");
    cri.pull(&name)?;
    let created = cri.create(pod, container_config("c", &name, &["sleep", "1"]));
    created.err().with_context(|| format!("a container runs as user {user:?}"))
}
