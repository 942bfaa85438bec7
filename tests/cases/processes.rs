//! Cases about containers' processes: what an exec sees and leaves behind, how logs end, limits and CPUs that the guest does not have,
//! recorded seccomp profiles, rates of use.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::security_profile::ProfileType;
use isopod_protocols::cri::{
    self as v1, ContainerConfig, HugepageLimit, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, SecurityProfile,
};
use isopod_tests::cri::{Cri, Pod, container_config, pod_config, wait_for};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{cases, daemon};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tonic::Code;

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["processes":
            what_an_exec_leaves_in_the_background_lives_until_its_container_ends,
            exec_sees_the_limits_of_its_container,
            exec_enters_the_containers_own_mounts_whatever_its_first_process_did,
            execs_work_where_a_container_nests_cgroups,
            exec_whose_pipes_are_held_ends_with_its_code,
            client_that_leaves_ends_its_exec_alone,
            daemon_that_follows_ends_execs_without_a_client,
            last_line_without_an_end_is_whole,
            cpus_of_the_node_place_the_vm_and_size_it,
            sets_of_cpus_that_are_none_are_refused,
            limits_that_the_guest_lacks_are_accepted,
            recorded_profile_allows_no_more_than_its_program,
            filter_leaves_no_privilege_and_its_faults_are_named,
            profile_that_leaves_fields_out_is_read_as_by_containerd,
            empty_home_is_filled_in_and_a_set_one_stays,
            value_of_a_variable_reaches_the_process_byte_by_byte,
            terminal_belongs_to_its_user,
            statistics_of_a_pod_list_containers_with_rates,
            shared_memory_and_sessions_are_there_for_servers,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    Ok(cri)
}

/// Whether a process of that command line runs in the container.
fn runs(cri: &Cri, container: &str, command: &str) -> Result<bool> {
    Ok(cri.exec(container, &["pgrep", "-fx", command])?.exit_code == 0)
}

fn what_an_exec_leaves_in_the_background_lives_until_its_container_ends() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("hook")?;
    let other = cri.run_container(&pod, container_config("other", "busybox", &["sleep", "1000"]))?;
    cri.shell(&container, "setsid sleep 777 >/dev/null 2>&1 </dev/null & sleep 778 >/dev/null 2>&1 &")?;
    // One that is killed at its limit takes only its own tree along, and not a daemon whose parent has ended.
    let script = "setsid sleep 779 & sh -c 'sleep 781 & wait' & (sleep 782 >/dev/null 2>&1 &); sleep 780";
    let late = cri.exec_for(&container, &["sh", "-c", script], 1);
    ensure!(late.is_err_and(|late| late.code() == Code::DeadlineExceeded), "no limit");
    let runs_still = |seconds: u32| runs(&cri, &container, &format!("sleep {seconds}"));
    let left = [777, 778, 782].map(runs_still);
    ensure!(matches!(left, [Ok(true), Ok(true), Ok(true)]), "{left:?}");
    let left = [779, 780, 781].map(runs_still);
    ensure!(matches!(left, [Ok(false), Ok(false), Ok(false)]), "{left:?}");
    let groups = cri.shell(&container, "cat /proc/self/cgroup; echo /sys/fs/cgroup/*/")?;
    ensure!(groups == "0::/\n/sys/fs/cgroup/*/", "execs have groups of their own: {groups}");
    cri.stop(&container, 0)?;
    ensure!(!runs(&cri, &other, "sleep 777")?, "it outlives its container");
    cri.clean()
}

fn exec_sees_the_limits_of_its_container() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("limited")?;
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..LinuxContainerResources::default()
    };
    let linux = LinuxContainerConfig { resources: Some(resources), ..LinuxContainerConfig::default() };
    let config =
        ContainerConfig { linux: Some(linux), ..container_config("c", "busybox", &["sleep", "1000"]) };
    let container = cri.run_container(&pod, config)?;
    // As JVM, libuv and Go look for them: in the group that they are told.
    let look = "group=$(sed -n s/^0:://p /proc/self/cgroup); echo $group; cd /sys/fs/cgroup$group && cat memory.max cpu.max";
    let expected = format!("/\n{}\n50000 100000", 64 << 20);
    let seen = cri.shell(&container, look)?;
    ensure!(seen == expected, "{seen}");
    // And what an exec leaves in the background.
    let later =
        format!("setsid sh -c 'sleep 2; ({look}) >/tmp/seen; touch /tmp/done' >/dev/null 2>&1 </dev/null &");
    cri.shell(&container, &later)?;
    let seen = || cri.shell(&container, "[ ! -e /tmp/done ] || cat /tmp/seen");
    let seen = wait_for("what it sees", || Ok(Some(seen()?).filter(|seen| !seen.is_empty())))?;
    ensure!(seen == expected, "later: {seen}");
    cri.clean()
}

fn exec_enters_the_containers_own_mounts_whatever_its_first_process_did() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("own-mounts")?;
    let context = LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: 1000 }),
        ..LinuxContainerSecurityContext::default()
    };
    let linux = LinuxContainerConfig { security_context: Some(context), ..LinuxContainerConfig::default() };
    // The first process itself leaves: `unshare` executes the shell in its place.
    let script = "echo foreign >/tmp/foreign && mount --bind /tmp/foreign /etc/hostname && \
                  cat /etc/hostname; exec sleep 1000";
    let command = ["unshare", "-U", "-m", "-r", "sh", "-c", script];
    let config = ContainerConfig { linux: Some(linux), ..container_config("c", "busybox", &command) };
    let container = cri.run_container(&pod, config)?;
    cri.wait_logged(&container, "foreign")?;
    let seen = cri.shell(&container, "cat /etc/hostname; id -u")?;
    ensure!(seen == "own-mounts\n1000", "an exec followed its container's first process: {seen}");
    // The mounts that are kept for execs do not keep the container.
    cri.stop(&container, 0)?;
    cri.remove(&container)?;
    cri.clean()
}

/// What systemd and Docker in Docker do: all processes move to a group below, and controllers are handed down.
const NEST: &str = "cd /sys/fs/cgroup && mkdir init && for p in $(cat cgroup.procs); do echo $p >init/cgroup.procs; done 2>/dev/null
    echo +memory +pids >cgroup.subtree_control && echo nested; exec sleep 1000";

fn execs_work_where_a_container_nests_cgroups() -> Result<()> {
    let cri = cri()?;
    let mut config = pod_config("nests");
    let context = v1::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    config.linux = Some(v1::LinuxPodSandboxConfig {
        security_context: Some(context),
        ..v1::LinuxPodSandboxConfig::default()
    });
    let pod = cri.run_pod_with(config)?;
    let resources =
        LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..LinuxContainerResources::default() };
    let context = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let linux = LinuxContainerConfig { security_context: Some(context), resources: Some(resources) };
    let config =
        ContainerConfig { linux: Some(linux), ..container_config("c", "busybox", &["sh", "-c", NEST]) };
    let container = cri.run_container(&pod, config)?;
    cri.wait_logged(&container, "nested")?;
    let group = |cri: &Cri| cri.shell(&container, "cat /proc/self/cgroup");
    ensure!(group(&cri)? == "0::/init", "the group of the first process: {}", group(&cri)?);
    let below = "mkdir -p /sys/fs/cgroup/docker/x && cd /sys/fs/cgroup/docker && echo +memory >cgroup.subtree_control && \
                 echo 33554432 >x/memory.max && echo $$ >x/cgroup.procs && cat /proc/self/cgroup";
    ensure!(cri.shell(&container, below)? == "0::/docker/x", "an exec moves as it likes");
    cri.shell(&container, "setsid sleep 785 >/dev/null 2>&1 </dev/null &")?;
    let late = cri.exec_for(&container, &["sh", "-c", "sleep 786 & sleep 787"], 1);
    ensure!(late.is_err_and(|late| late.code() == Code::DeadlineExceeded), "no limit");
    // One that runs while the daemon is killed, and has moved its processes.
    let script = "echo $$ >/sys/fs/cgroup/docker/x/cgroup.procs; exec sleep 788";
    let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 0 };
    let mut service = cri.service();
    let call = cri.begin(async move { service.exec_sync(request).await });
    wait_for("the exec", || Ok(Some(()).filter(|()| runs(&cri, &container, "sleep 788").unwrap_or(false))))?;
    daemon::restart()?;
    call.abort();
    let cri = Cri::connect()?;
    for round in 0..2 {
        ensure!(group(&cri)? == "0::/init", "round {round} after the restart: {}", group(&cri)?);
    }
    let left = [785, 786, 787, 788].map(|seconds| runs(&cri, &container, &format!("sleep {seconds}")));
    ensure!(matches!(left, [Ok(true), Ok(false), Ok(false), Ok(false)]), "{left:?}");
    cri.clean()
}

fn exec_whose_pipes_are_held_ends_with_its_code() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("held")?;
    let begun = Instant::now();
    let script = "(i=0; while :; do echo $i; echo $i >/tmp/n; mv /tmp/n /tmp/i; i=$((i+1)); sleep 0.1; done) & sleep 0.5; exit 3";
    let ran = cri.exec_for(&container, &["sh", "-c", script], 2)?;
    ensure!(ran.exit_code == 3 && ran.stdout.starts_with(b"0\n1\n"), "{ran:?}");
    ensure!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    // Nobody reads its pipe any more, and it goes on writing.
    let count = || Ok::<u64, anyhow::Error>(cri.shell(&container, "cat /tmp/i")?.parse()?);
    let before = count()?;
    wait_for("what holds the pipe goes on", || {
        Ok(Some(()).filter(|()| count().is_ok_and(|now| now > before)))
    })?;
    let short = cri.exec(&container, &["sh", "-c", "(sleep 3; echo late) & echo early"])?;
    ensure!(short.stdout == b"early\nlate\n", "output that comes soon is awaited: {short:?}");
    cri.clean()
}

fn client_that_leaves_ends_its_exec_alone() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("leaver")?;
    let cmd = ["sh", "-c", "sleep 781 & sleep 782; exit"].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 0 };
    let mut service = cri.service();
    let call = cri.begin(async move { service.exec_sync(request).await });
    wait_for("the exec", || Ok(Some(()).filter(|()| runs(&cri, &container, "sleep 782").unwrap_or(false))))?;
    call.abort();
    let gone = || Ok(Some(()).filter(|()| !runs(&cri, &container, "sh -c .*; exit").unwrap_or(true)));
    wait_for("the end of the exec's process", gone)?;
    ensure!(runs(&cri, &container, "sleep 781")?, "its children were hit");
    cri.clean()
}

fn daemon_that_follows_ends_execs_without_a_client() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("restart")?;
    cri.shell(&container, "setsid sleep 783 >/dev/null 2>&1 </dev/null &")?;
    let cmd = ["sleep", "784"].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 0 };
    let mut service = cri.service();
    let call = cri.begin(async move { service.exec_sync(request).await });
    wait_for("the exec", || Ok(Some(()).filter(|()| runs(&cri, &container, "sleep 784").unwrap_or(false))))?;
    daemon::restart()?;
    call.abort();
    let cri = Cri::connect()?;
    ensure!(!runs(&cri, &container, "sleep 784")?, "an exec of the killed daemon runs on");
    ensure!(runs(&cri, &container, "sleep 783")?, "what an earlier exec left was hit");
    cri.clean()
}

fn last_line_without_an_end_is_whole() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("tail")?;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; printf '\\377\\033[1m\\n'; printf err >&2; printf 'no end'";
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", script]))?;
    cri.wait_exited(&container)?;
    cri.remove(&container)?;
    let path = Path::new(&pod.config.log_directory).join("c.log");
    let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let tags = |stream: &str| {
        let lines =
            log.lines().filter_map(|line| line.split_once(&format!(" {stream} "))).collect::<Vec<_>>();
        lines.into_iter().map(|(_, rest)| rest.chars().next().unwrap_or(' ')).collect::<String>()
    };
    ensure!((tags("stdout"), tags("stderr")) == ("PPFFF".into(), "F".into()), "{log}");
    ensure!(log.ends_with(" no end\n") || log.ends_with(" err\n"), "{log}");
    cri.clean()
}

/// A container that sleeps, with these CPUs and memory nodes.
fn on(name: &str, cpus: &str, mems: &str) -> ContainerConfig {
    let resources = LinuxContainerResources {
        cpuset_cpus: cpus.into(),
        cpuset_mems: mems.into(),
        ..LinuxContainerResources::default()
    };
    let linux = LinuxContainerConfig { resources: Some(resources), ..LinuxContainerConfig::default() };
    ContainerConfig { linux: Some(linux), ..container_config(name, "busybox", &["sleep", "1000"]) }
}

/// CPUs of the node that the threads of a pod's VMM may use.
fn vmm_runs_on(pod: &Pod) -> Result<BTreeSet<String>> {
    let group = format!("/sys/fs/cgroup/isopod-{}", pod.id);
    let mut sets = BTreeSet::new();
    for thread in fs::read_to_string(format!("{group}/cgroup.threads")).context(group)?.lines() {
        // One may end meanwhile.
        let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        sets.extend(list.map(|list| list.trim().to_owned()));
    }
    Ok(sets)
}

fn cpus_of_the_node_place_the_vm_and_size_it() -> Result<()> {
    let cri = cri()?;
    let node = fs::read_to_string("/sys/devices/system/cpu/online")?.trim().to_owned();
    let only = |list: &str| BTreeSet::from([list.to_owned()]);
    let pod = cri.run_pod("placed")?;
    let one = cri.run_container(&pod, on("one", "0", "0"))?;
    ensure!(vmm_runs_on(&pod)? == only("0"), "{:?}", vmm_runs_on(&pod)?);
    let update = LinuxContainerResources { cpuset_cpus: "0-63".into(), ..LinuxContainerResources::default() };
    let request = v1::UpdateContainerResourcesRequest {
        container_id: one.clone(),
        linux: Some(update),
        ..v1::UpdateContainerResourcesRequest::default()
    };
    cri.wait(cri.service().update_container_resources(request))?;
    ensure!(vmm_runs_on(&pod)? == only(&node), "{:?}", vmm_runs_on(&pod)?);
    let most = std::thread::available_parallelism()?.get().min(2).to_string();
    ensure!(
        cri.shell(&one, "nproc")? == most,
        "64 CPUs of the node give {} processors",
        cri.shell(&one, "nproc")?
    );
    let asked = cri.status(&one)?.resources.and_then(|all| all.linux).context("no resources")?;
    ensure!((asked.cpuset_cpus.as_str(), asked.cpuset_mems.as_str()) == ("0-63", "0"), "{asked:?}");
    // A container that ends gives its CPUs back, also while another goes on.
    let two = cri.run_container(&pod, on("two", "0", "0"))?;
    cri.stop(&one, 0)?;
    ensure!(vmm_runs_on(&pod)? == only("0"), "{:?}", vmm_runs_on(&pod)?);
    for (name, cpus, mems) in [("a", "4-7", ""), ("b", "2,5", "1")] {
        let far = cri.run_pod(name)?;
        cri.run_container(&far, on("c", cpus, mems))?;
        ensure!(vmm_runs_on(&far)? == only(&node), "the node has none of {cpus}: {:?}", vmm_runs_on(&far)?);
    }
    daemon::restart()?;
    let cri = Cri::connect()?;
    ensure!(vmm_runs_on(&pod)? == only("0"), "after a restart: {:?}", vmm_runs_on(&pod)?);
    cri.run_container(&pod, container_config("anywhere", "busybox", &["sleep", "1000"]))?;
    ensure!(vmm_runs_on(&pod)? == only(&node), "one without a set may run anywhere");
    ensure!(cri.status(&two)?.state() == v1::ContainerState::ContainerRunning, "it was hit");
    cri.clean()
}

fn sets_of_cpus_that_are_none_are_refused() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("nonsense")?;
    for (cpus, mems, field) in
        [("0-", "", "cpuset_cpus"), ("", "a", "cpuset_mems"), ("3-1", "", "cpuset_cpus")]
    {
        let refused = cri.create(&pod, on("c", cpus, mems)).expect_err("it is no list");
        ensure!(refused.code() == Code::InvalidArgument && refused.message().contains(field), "{refused:?}");
    }
    cri.clean()
}

fn limits_that_the_guest_lacks_are_accepted() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("lacking")?;
    let page = |size: &str| HugepageLimit { page_size: size.into(), limit: 1 << 30 };
    let resources = LinuxContainerResources {
        hugepage_limits: ["2MB", "1GB", "64KB", "16GB"].map(page).to_vec(),
        cpu_shares: 1_000_000,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 1 << 20,
        oom_score_adj: 5000,
        ..LinuxContainerResources::default()
    };
    let linux = LinuxContainerConfig { resources: Some(resources), ..LinuxContainerConfig::default() };
    let config =
        ContainerConfig { linux: Some(linux), ..container_config("c", "busybox", &["sleep", "1000"]) };
    let container = cri.run_container(&pod, config)?;
    let seen = cri.shell(
        &container,
        "cd /sys/fs/cgroup && cat cpu.weight memory.max /proc/$(pidof sleep)/oom_score_adj",
    )?;
    ensure!(seen == format!("10000\n{}\n1000", 64 << 20), "{seen}");
    cri.clean()
}

/// A container under a profile of the node.
fn filtered(name: &str, profile: &Value, no_new_privs: bool, command: &[&str]) -> Result<ContainerConfig> {
    let path = format!("/tmp/profile-{name}.json");
    fs::write(&path, profile.to_string())?;
    let seccomp = SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: format!("localhost/{path}"),
    };
    let context = LinuxContainerSecurityContext {
        seccomp: Some(seccomp),
        no_new_privs,
        ..LinuxContainerSecurityContext::default()
    };
    let linux = LinuxContainerConfig { security_context: Some(context), ..LinuxContainerConfig::default() };
    Ok(ContainerConfig { linux: Some(linux), ..container_config(name, "busybox", command) })
}

fn profile_that_leaves_fields_out_is_read_as_by_containerd() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("lenient")?;
    // As the security profiles operator writes it: numbers that are 0 are left out.
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": null,
        "syscalls": [
            { "names": null, "action": "SCMP_ACT_ERRNO" },
            { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": [{ "op": "SCMP_CMP_NE" }] },
        ],
    });
    let script = "mkdir /x 2>&1; sleep 1000";
    let container = cri.run_container(&pod, filtered("lenient", &profile, true, &["sh", "-c", script])?)?;
    cri.wait_logged(&container, "No space left")?;
    cri.clean()
}

fn empty_home_is_filled_in_and_a_set_one_stays() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("home")?;
    let seen = |name: &str, homes: &[&str]| {
        let home = |value: &&str| v1::KeyValue { key: "HOME".into(), value: (*value).into() };
        let config = ContainerConfig {
            envs: homes.iter().map(home).collect(),
            ..container_config(name, "busybox", &["sleep", "1000"])
        };
        let container = cri.run_container(&pod, config)?;
        cri.shell(&container, "echo $HOME")
    };
    let own = seen("unset", &[])?;
    ensure!(own.starts_with('/'), "{own:?}");
    for (name, homes, expected) in [
        ("empty", ["", ""], own.as_str()),
        ("emptied", ["/set", ""], own.as_str()),
        ("set", ["", "/set"], "/set"),
    ] {
        let seen = seen(name, &homes)?;
        ensure!(seen == expected, "{name}: {seen:?}");
    }
    cri.clean()
}

fn value_of_a_variable_reaches_the_process_byte_by_byte() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("bytes")?;
    let entry = b"SECRET=\xff\xfe=\x01".as_slice();
    let secret = v1::KeyValue { key: "SECRET".into(), value: entry[7..].to_vec() };
    const KEEP: &str =
        "mkdir -p /tmp; cat /proc/self/environ > /tmp/new; mv /tmp/new /tmp/environ; sleep 1000";
    let command = ["sh", "-c", KEEP];
    let config = ContainerConfig { envs: vec![secret], ..container_config("c", "busybox", &command) };
    let container = cri.run_container(&pod, config)?;
    wait_for("the first process's environment", || {
        Ok(Some(()).filter(|()| {
            cri.exec(&container, &["test", "-e", "/tmp/environ"]).is_ok_and(|test| test.exit_code == 0)
        }))
    })?;
    // Of the container's first process, and of an exec.
    for file in ["/tmp/environ", "/proc/self/environ"] {
        let seen = cri.exec(&container, &["cat", file])?.stdout;
        ensure!(seen.split(|byte| *byte == 0).any(|seen| seen == entry), "{file}: {seen:x?}");
    }
    cri.clean()
}

fn terminal_belongs_to_its_user() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("terminal")?;
    let script =
        "stat -c %u $(tty); echo out >/dev/stdout && echo err >/dev/stderr && echo opened; sleep 1000";
    let context = LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: 1500 }),
        ..LinuxContainerSecurityContext::default()
    };
    let linux = LinuxContainerConfig { security_context: Some(context), ..LinuxContainerConfig::default() };
    let config = ContainerConfig {
        tty: true,
        linux: Some(linux),
        ..container_config("c", "busybox", &["sh", "-c", script])
    };
    let container = cri.run_container(&pod, config)?;
    let log = cri.wait_logged(&container, "opened")?;
    ensure!(log.contains("1500") && log.contains("err"), "{log}");
    cri.clean()
}

/// What a static busybox calls that sleeps or says something, and execve: all else kills.
fn recorded() -> Value {
    let calls = [
        "execve",
        "write",
        "exit_group",
        "brk",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "getrandom",
        "mprotect",
        "prctl",
        "getuid",
        "nanosleep",
        "clock_nanosleep",
        "rt_sigaction",
        "rt_sigprocmask",
        "mmap",
        "munmap",
        "readlink",
        "no_such_call_of_any_kernel",
    ];
    json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{ "names": calls, "action": "SCMP_ACT_ALLOW", "args": null }],
    })
}

fn recorded_profile_allows_no_more_than_its_program() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("recorded")?;
    for (name, no_new_privs) in [("last", true), ("privileged-load", false)] {
        let config = filtered(name, &recorded(), no_new_privs, &["busybox", "sleep", "1000"])?;
        let container = cri.run_container(&pod, config)?;
        let said = cri.exec(&container, &["/bin/busybox", "echo", "said"])?;
        ensure!((said.stdout.as_slice(), said.exit_code) == (b"said\n", 0), "{name}: {said:?}");
        let killed = cri.exec(&container, &["/bin/busybox", "mkdir", "/x"])?;
        ensure!(killed.exit_code == 128 + 31, "{name}: mkdir is not in the profile: {killed:?}");
        let missing = cri.exec(&container, &["no-such-program"]).expect_err("there is no such program");
        ensure!(missing.message().contains("no-such-program"), "{name}: {missing:?}");
        ensure!(
            cri.status(&container)?.state() == v1::ContainerState::ContainerRunning,
            "{name}: it was killed"
        );
    }
    cri.clean()
}

fn filter_leaves_no_privilege_and_its_faults_are_named() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("filter")?;
    let script =
        "grep -E '^(CapEff|CapBnd|CapPrm|Seccomp):' /proc/self/status; mkdir /x 2>&1; unshare -U true 2>&1";
    let clone = json!({
        "names": ["unshare", "clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
        "args": [{ "index": 0, "value": 0x1000_0000, "valueTwo": 0x1000_0000, "op": "SCMP_CMP_MASKED_EQ" }],
    });
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }, clone],
    });
    for no_new_privs in [false, true] {
        let name = format!("caps-{no_new_privs}");
        let container =
            cri.run_container(&pod, filtered(&name, &profile, no_new_privs, &["sh", "-c", script])?)?;
        cri.wait_exited(&container)?;
        let log = cri.wait_logged(&container, "unshare")?;
        for words in [
            "CapEff:\t00000000a80425fb",
            "CapBnd:\t00000000a80425fb",
            "Seccomp:\t2",
            "No space left",
            "ot supported",
        ] {
            ensure!(log.contains(words), "no {words:?} in {log}");
        }
    }
    for (profile, words) in [
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_NOTIFY" }] }),
            "listener",
        ),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"] }),
            "SCMP_ARCH_ABACUS",
        ),
        (json!({ "defaultAction": "SCMP_ACT_WISH" }), "SCMP_ACT_WISH"),
    ] {
        let refused = cri.create(&pod, filtered("bad", &profile, true, &["true"])?).expect_err("no profile");
        ensure!(refused.code() == Code::InvalidArgument && refused.message().contains(words), "{refused:?}");
    }
    cri.clean()
}

fn statistics_of_a_pod_list_containers_with_rates() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("rates")?;
    let busy =
        cri.run_container(&pod, container_config("busy", "busybox", &["sh", "-c", "while :; do :; done"]))?;
    cri.run_container(&pod, container_config("idle", "busybox", &["sleep", "1000"]))?;
    let stats = || {
        let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
        let answer = cri.wait(cri.service().pod_sandbox_stats(request))?;
        answer.stats.and_then(|stats| stats.linux).context("no figures")
    };
    let rate = |cpu: Option<v1::CpuUsage>| cpu.and_then(|cpu| cpu.usage_nano_cores).map(|rate| rate.value);
    stats()?;
    std::thread::sleep(Duration::from_secs(3));
    let now = stats()?;
    ensure!(rate(now.cpu).is_some_and(|rate| rate > 50_000_000), "rate of the pod {:?}", now.cpu);
    ensure!(now.containers.len() == 2, "{} containers", now.containers.len());
    for container in now.containers {
        let id = container.attributes.clone().unwrap_or_default().id;
        let of_busy = rate(container.cpu).context("no rate")? > 50_000_000;
        ensure!(of_busy == (id == busy), "{container:?}");
        ensure!(container.memory.is_some() && container.writable_layer.is_some(), "{container:?}");
    }
    let request = v1::ContainerStatsRequest { container_id: busy };
    let alone = cri.wait(cri.service().container_stats(request))?.stats.unwrap_or_default();
    ensure!(rate(alone.cpu).is_some(), "{alone:?}");
    cri.clean()
}

fn shared_memory_and_sessions_are_there_for_servers() -> Result<()> {
    let cri = cri()?;
    let (_, container) = cri.run_sleeper("server")?;
    let seen = cri.shell(&container, "stat -c %a /dev/shm; df -m /dev/shm | tail -n 1 | awk '{print $2}'; cat /proc/sys/kernel/shmmax | wc -c")?;
    ensure!(seen.starts_with("1777\n64\n"), "{seen}");
    // As pg_ctl does: a server that leaves session and terminal, and answers the next exec.
    cri.shell(&container, "cd /tmp && mkfifo ask tell && setsid sh -c 'while read q <ask; do echo pid $$ >tell; done' >/tmp/log 2>&1 </dev/null &")?;
    let answer =
        cri.shell(&container, "cd /tmp && echo >ask && read a <tell && echo $a && ipcs -m | head -n 2")?;
    ensure!(answer.starts_with("pid "), "{answer}");
    let probe = Command::new("crictl").args(["exec", "-s", &container, "true"]).output()?;
    ensure!(probe.status.success(), "{probe:?}");
    cri.clean()
}
