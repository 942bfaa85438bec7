//! Cases about programs as people run them: servers, compilers and tools of a common distribution, in the image `debian`.
//!
//! Each checks what the program did, none its version or speed. `tests/images/README.md` says what cannot work in a pod.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{self as v1, ContainerConfig, LinuxContainerResources};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config, pod_config, wait_for};
use isopod_tests::node::{Isopod, Settings};
use std::process::{Command, ExitCode};
use std::time::Duration;

fn main() -> ExitCode {
    let settings = Settings {
        isopod: Isopod::Serving,
        registry: true,
        debian: true,
        // the layer lies in the node's memory, and what reads it has it there once more
        memory_mib: 7168,
        timeout: Duration::from_secs(900),
        ..Settings::default()
    };
    isopod_tests::case::run(
        settings,
        cases!["workloads":
            postgresql_started_by_one_exec_serves_pgbench_in_the_next,
            redis_serves_and_saves_what_a_later_server_loads,
            nginx_serves_its_pod_and_the_node_and_reloads,
            compiler_and_make_build_a_program_that_runs,
            git_commits_clones_and_packs,
            strace_follows_the_processes_of_a_shell,
            fio_verifies_what_it_wrote_asynchronously,
            iperf3_measures_between_two_pods,
            stress_ng_finds_nothing_wrong,
            package_is_built_installed_and_removed,
            locale_perl_and_python_work_as_on_a_machine,
        ],
    )
}

/// Memory of each pod and container here: what people give such programs at least.
const MEMORY: i64 = 512 << 20;

fn resources() -> Option<LinuxContainerResources> {
    Some(LinuxContainerResources { memory_limit_in_bytes: MEMORY, ..LinuxContainerResources::default() })
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("debian")?;
    Ok(cri)
}

/// A pod with a container that runs this.
fn run(cri: &Cri, name: &str, command: &[&str]) -> Result<(Pod, String)> {
    let mut config = pod_config(name);
    config.linux = Some(v1::LinuxPodSandboxConfig { resources: resources(), ..Default::default() });
    let pod = cri.run_pod_with(config)?;
    let container = cri.run_container(&pod, debian(name, command))?;
    Ok((pod, container))
}

/// With the seccomp profile that Kubernetes advises.
fn debian(name: &str, command: &[&str]) -> ContainerConfig {
    let security = v1::LinuxContainerSecurityContext {
        seccomp: Some(v1::SecurityProfile::default()),
        ..v1::LinuxContainerSecurityContext::default()
    };
    let linux = v1::LinuxContainerConfig { resources: resources(), security_context: Some(security) };
    ContainerConfig { linux: Some(linux), ..container_config(name, "debian", command) }
}

/// One that waits for execs.
fn run_idle(cri: &Cri, name: &str) -> Result<String> {
    Ok(run(cri, name, &["sleep", "infinity"])?.1)
}

/// What a script prints, without its last newline. Emulated processors take their time for some of them.
fn shell(cri: &Cri, container: &str, script: &str) -> Result<String> {
    let ran = cri.exec_for(container, &["sh", "-c", script], 240).with_context(|| script.to_owned())?;
    let (out, errors) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.exit_code == 0, "{script:?} exited with {}: {out}{errors}", ran.exit_code);
    Ok(out.trim_end().to_owned())
}

fn address(cri: &Cri, pod: &Pod) -> Result<String> {
    Ok(cri.pod_status(&pod.id)?.network.context("the pod has no network")?.ip)
}

fn postgresql_started_by_one_exec_serves_pgbench_in_the_next() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "postgresql")?;
    let postgres = |script: &str| {
        let script = format!(
            "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) PGDATA=/var/lib/postgresql/data; export PATH PGDATA; {script}"
        );
        shell(&cri, &container, &format!("cd /tmp && runuser -u postgres -- sh -c '{script}'"))
    };
    // on a machine systemd makes it, in an image its maker
    shell(&cri, &container, "install -d -o postgres -g postgres /run/postgresql")?;
    postgres("initdb --no-sync --wal-segsize=1")?;
    postgres("pg_ctl -w -l /tmp/log start || { cat /tmp/log; false; }")?;
    postgres("pgbench -q -i -s 1 postgres")?;
    let ran = postgres("pgbench -c 4 -t 25 postgres")?;
    ensure!(ran.contains("actually processed: 100/100") && ran.contains("failed transactions: 0 "), "{ran}");
    postgres("pg_ctl -w stop -m immediate && pg_ctl -w -l /tmp/log start")?;
    ensure!(
        shell(&cri, &container, "cat /tmp/log")?.contains("automatic recovery in progress"),
        "no recovery"
    );
    let kept = postgres("psql -A -t -c \"select count(*) from pgbench_history\" postgres")?;
    ensure!(kept == "100", "{kept} of 100 transactions outlived a crash of the server");
    cri.clean()
}

fn redis_serves_and_saves_what_a_later_server_loads() -> Result<()> {
    let cri = cri()?;
    let (_, container) = run(&cri, "redis", &["redis-server", "--dir", "/var/lib/redis"])?;
    wait_for("an answer of redis", || {
        Ok(shell(&cri, &container, "redis-cli ping").ok().filter(|a| a == "PONG"))
    })?;
    let ran = shell(
        &cri,
        &container,
        "redis-benchmark -q -n 500 -c 10 -r 100000 -t set,incr && redis-cli incrby counter 42",
    )?;
    ensure!(ran.contains("SET: ") && ran.contains("INCR: ") && ran.ends_with("42"), "{ran}");
    // a child of the server writes its memory as it was at the fork
    shell(&cri, &container, "redis-cli bgsave")?;
    let saved = "redis-cli info persistence | grep -q rdb_bgsave_in_progress:0 && redis-cli info persistence | grep rdb_last_bgsave_status";
    let saved = wait_for("the end of saving", || Ok(shell(&cri, &container, saved).ok()))?;
    ensure!(saved.contains("status:ok"), "{saved}");
    shell(
        &cri,
        &container,
        "redis-server --dir /var/lib/redis --port 6380 --daemonize no >/dev/null & \
        until redis-cli -p 6380 ping | grep -q PONG; do sleep 0.2; done; redis-cli -p 6380 get counter | grep -x 42 && redis-cli -p 6380 shutdown nosave",
    )?;
    cri.clean()
}

fn nginx_serves_its_pod_and_the_node_and_reloads() -> Result<()> {
    let cri = cri()?;
    cri.pull("busybox")?;
    let (pod, nginx) = run(&cri, "nginx", &["nginx", "-g", "daemon off;"])?;
    let beside = cri.run_container(&pod, container_config("beside", "busybox", &["sleep", "100000"]))?;
    let sum = shell(&cri, &nginx, "cd /var/www/html && head -c 3000000 /dev/urandom >file && md5sum <file")?;
    let from_pod =
        || Ok(shell(&cri, &beside, "wget -q -O /tmp/file http://127.0.0.1/file && md5sum </tmp/file").ok());
    ensure!(wait_for("the file, from the pod", from_pod)? == sum, "another file, from the pod");
    let fetch = format!("wget -q -O - http://{}/file | md5sum", address(&cri, &pod)?);
    let from_node = Command::new("sh").args(["-c", &fetch]).output()?;
    ensure!(String::from_utf8_lossy(&from_node.stdout).trim() == sum, "from the node: {from_node:?}");
    shell(
        &cri,
        &nginx,
        "echo 'server { listen 81; return 200 reloaded; }' >/etc/nginx/conf.d/new.conf && nginx -t && nginx -s reload",
    )?;
    let reloaded = || Ok(shell(&cri, &beside, "wget -q -O - http://127.0.0.1:81/").ok());
    ensure!(wait_for("the new server", reloaded)? == "reloaded", "it says something else");
    cri.stop(&nginx, 20)?;
    ensure!(cri.status(&nginx)?.exit_code == 0, "nginx did not end in order: {:?}", cri.status(&nginx)?);
    cri.clean()
}

fn compiler_and_make_build_a_program_that_runs() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "compiler")?;
    shell(
        &cri,
        &container,
        r#"mkdir /tmp/build && cd /tmp/build
printf '#include <math.h>\ndouble root(double of) { return sqrt(of); }\n' >root.c
printf '#include <pthread.h>\n#include <stdio.h>\ndouble root(double);\nstatic void *run(void *of) { printf("%%.3f\\n", root(*(double *)of)); return 0; }\nint main(void) { double two = 2; pthread_t t; pthread_create(&t, 0, run, &two); return pthread_join(t, 0); }\n' >main.c
printf 'CFLAGS = -O2 -Wall -Werror -pthread\nroots: main.o root.o\n\t$(CC) $(CFLAGS) -o $@ $^ -lm\n' >Makefile
make -s -j2"#,
    )?;
    ensure!(shell(&cri, &container, "/tmp/build/roots")? == "1.414", "the program computes something else");
    let again =
        shell(&cri, &container, "make -C /tmp/build && touch /tmp/build/root.c && make -C /tmp/build -n")?;
    ensure!(again.contains("up to date") && again.contains("root.o") && !again.contains("main.c"), "{again}");
    cri.clean()
}

fn git_commits_clones_and_packs() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "git")?;
    let cloned = shell(
        &cri,
        &container,
        "set -e; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; cd /tmp
git init -q -b main first && cd first && cp -r /etc . 2>/dev/null && git add -A && git commit -q -m all
ln -s etc/passwd link && chmod +x etc/passwd && git add -A && git commit -q -m more && git tag -m one v1
git gc -q && git fsck --strict && cd .. && git clone -q file:///tmp/first second && cd second
git diff --stat v1 && git status --porcelain && git log --format=%s && test -x etc/passwd && readlink link",
    )?;
    ensure!(cloned == "more\nall\netc/passwd", "{cloned}");
    cri.clean()
}

fn strace_follows_the_processes_of_a_shell() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "strace")?;
    let trace =
        shell(&cri, &container, "strace -f -o /tmp/trace sh -c 'ls / | grep -c usr' && cat /tmp/trace")?;
    for line in [r#"execve("/usr/bin/sh""#, r#"execve("/usr/bin/ls""#, r#"execve("/usr/bin/grep""#, "SIGCHLD"]
    {
        ensure!(trace.contains(line), "{line} is not in:\n{trace}");
    }
    ensure!(trace.matches("+++ exited with 0 +++").count() == 3, "three processes:\n{trace}");
    // one that runs already
    let attached = "sleep 3 & timeout 20 strace -e trace=exit_group -p $! 2>&1";
    let attached = shell(&cri, &container, attached)?;
    ensure!(attached.contains("attached") && attached.contains("exit_group(0)"), "{attached}");
    cri.clean()
}

fn fio_verifies_what_it_wrote_asynchronously() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "fio")?;
    let job = "fio --name=job --directory=/var/tmp --size=4m --bs=16k --verify=crc32c --verify_fatal=1 --output-format=terse";
    for (engine, more) in [
        ("libaio", "--rw=randwrite --iodepth=8 --direct=1"),
        ("mmap", "--rw=write"),
        ("psync", "--rw=randrw --fsync=8"),
    ] {
        let terse = shell(&cri, &container, &format!("{job} --ioengine={engine} {more}"))?;
        let fields: Vec<&str> = terse.split(';').collect();
        let written = fields.get(46).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        ensure!(fields.get(4) == Some(&"0") && written > 0, "{engine}: {terse}");
    }
    // the profile refuses io_uring, as containerd's does
    let refused = shell(&cri, &container, &format!("{job} --ioengine=io_uring --rw=write 2>&1 || true"))?;
    ensure!(refused.contains("Operation not permitted"), "{refused}");
    cri.clean()
}

fn iperf3_measures_between_two_pods() -> Result<()> {
    let cri = cri()?;
    let (server, _) = run(&cri, "server", &["iperf3", "-s"])?;
    let client = run_idle(&cri, "client")?;
    let server = address(&cri, &server)?;
    let ready = format!("bash -c 'until : </dev/tcp/{server}/5201; do sleep 1; done' 2>/dev/null");
    shell(&cri, &client, &ready)?;
    for (kind, bytes) in [("", 8 << 20), ("-R", 8 << 20), ("-u -b 20M -l 1400", 1 << 20)] {
        let report = shell(&cri, &client, &format!("iperf3 -J -c {server} -n {bytes} {kind}"))?;
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let end = &report["end"];
        let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
        ensure!(sum["bytes"].as_u64() >= Some(bytes / 2), "iperf3 {kind}: {end}");
    }
    cri.clean()
}

fn stress_ng_finds_nothing_wrong() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "stress-ng")?;
    let stressors = "--cpu 1 --cpu-ops 5 --vm 1 --vm-bytes 16m --vm-ops 200 --fork 1 --fork-ops 20 --pipe 1 --pipe-ops 500 \
        --futex 1 --futex-ops 500 --mmap 1 --mmap-ops 2 --mmap-bytes 8m --timer 1 --timer-ops 50 --sem 1 --sem-ops 500 \
        --shm 1 --shm-ops 2 --shm-bytes 4m --mq 1 --mq-ops 500 --sock 1 --sock-ops 20";
    let ran = cri.exec(
        &container,
        &["sh", "-c", &format!("cd /tmp && stress-ng --verify --timeout 5 {stressors} 2>&1")],
    )?;
    let said = String::from_utf8_lossy(&ran.stdout);
    ensure!(ran.exit_code == 0 && said.contains("failed: 0") && said.contains("passed: 11"), "{said}");
    cri.clean()
}

fn package_is_built_installed_and_removed() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "package")?;
    shell(
        &cri,
        &container,
        r"set -e; mkdir -p /tmp/case/DEBIAN /tmp/case/usr/bin /tmp/case/etc && cd /tmp
printf 'Package: case\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nDepends: git\nDescription: a case\n' >case/DEBIAN/control
printf '#!/bin/sh\nset -e\nuseradd --system --create-home case\n' >case/DEBIAN/postinst
printf '#!/bin/sh\nexec cat /etc/case.conf\n' >case/usr/bin/case-program
echo configured >case/etc/case.conf; echo /etc/case.conf >case/DEBIAN/conffiles
chmod 755 case/DEBIAN/postinst case/usr/bin/case-program
dpkg-deb --build --root-owner-group case case.deb",
    )?;
    shell(&cri, &container, "cd /tmp && DEBIAN_FRONTEND=noninteractive apt-get install -y ./case.deb")?;
    let works = shell(
        &cri,
        &container,
        "case-program; dpkg -V case; stat -c %U /home/case; dpkg-query -W -f '${Status}' case",
    )?;
    ensure!(works == "configured\ncase\ninstall ok installed", "{works}");
    shell(
        &cri,
        &container,
        "apt-get purge -y case && ! test -e /usr/bin/case-program && ! test -e /etc/case.conf && dpkg --audit",
    )?;
    cri.clean()
}

fn locale_perl_and_python_work_as_on_a_machine() -> Result<()> {
    let cri = cri()?;
    let container = run_idle(&cri, "scripts")?;
    let march = shell(
        &cri,
        &container,
        "localedef -i de_DE -f UTF-8 de_DE.UTF-8 && LC_ALL=de_DE.UTF-8 date -d 2026-03-01 +%B",
    )?;
    ensure!(march == "März", "{march}");
    let perl = r#"use POSIX; use Socket; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) or die; my $child = fork; if (!$child) { syswrite A, getppid; exit 7 }
        waitpid $child, 0; sysread B, my $parent, 20; print $? >> 8, " ", $parent == $$ ? "parent" : "nobody", " ", join ",", sort { $b <=> $a } 3, 20, 1"#;
    let printed = cri.exec(&container, &["perl", "-e", perl])?;
    ensure!(printed.stdout == b"7 parent 20,3,1", "{printed:?}");
    // semaphores and queues of processes lie in /dev/shm
    let python = "import multiprocessing, subprocess, hashlib\n\
        with multiprocessing.get_context('fork').Pool(2) as pool: print(sum(pool.map(len, ['a', 'bc'] * 10)))\n\
        print(subprocess.check_output(['tr', 'a-z', 'A-Z'], input=b'text').decode(), hashlib.sha256(b'').hexdigest()[:8])";
    let printed = cri.exec(&container, &["python3", "-c", python])?;
    ensure!(printed.stdout == b"30\nTEXT e3b0c442\n", "{}", String::from_utf8_lossy(&printed.stderr));
    cri.clean()
}
