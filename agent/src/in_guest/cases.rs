//! The cases. Each begins with no container; whatever it leaves behind fails it.

use super::guest::{Guest, assert_refused};
use futures_util::StreamExt;
use isopod_protocols::agent::*;
use serde_json::json;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

type Case = (&'static str, fn(Guest) -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// All cases, in order.
        pub fn all() -> Vec<Case> {
            vec![$((stringify!($name), |guest| Box::pin($name(guest)))),*]
        }
    };
}

cases![
    command_runs_and_its_output_and_exit_arrive,
    container_sees_itself_alone,
    user_of_the_image_owns_its_process_and_streams,
    commands_that_cannot_be_executed_are_named,
    seccomp_holds_for_first_process_and_execs,
    restrictions_hold_for_first_process_and_execs,
    exec_runs_in_the_container,
    killing_an_exec_tree_spares_the_container,
    signals_reach_processes,
    limits_hold_and_change_all_or_none,
    out_of_memory_is_told,
    pod_pid_namespace_is_shared_and_collects_orphans,
    target_pid_namespace_is_joined,
    terminals_have_a_size_and_take_input,
    stdin_reaches_the_process,
    much_output_is_not_lost,
    failed_creations_leave_nothing,
    removal_ends_whatever_state,
    calls_on_one_container_at_a_time_are_safe,
    watchers_see_a_snapshot_and_every_change,
    times,
];

async fn command_runs_and_its_output_and_exit_arrive(guest: Guest) {
    let container = guest.shell("echo out; echo err >&2; exit 3").run().await;
    let exit = container.wait("").await;
    assert_eq!((exit.code, exit.oom_killed), (3, false));
    assert_eq!(container.output("").await, "out\nerr");
    // Still there, as long as the container is.
    assert_eq!(container.wait("").await, exit);
    assert_eq!(container.output("").await, "out\nerr");
    assert_refused(container.start().await, Code::FailedPrecondition, "exited");
}

async fn container_sees_itself_alone(guest: Guest) {
    let script = "echo $$; cat /proc/1/cmdline | tr '\\0' ' '; hostname; cat /proc/self/cgroup; ls /proc | grep -c '^[0-9]'";
    let (code, output) = guest.shell(script).outcome().await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((code, lines[0]), (0, "1"), "{output}");
    assert!(lines[1].starts_with("/bin/sh -c") && lines[1].ends_with("guest"), "{output}");
    assert_eq!(lines[2], "0::/", "{output}");
}

async fn user_of_the_image_owns_its_process_and_streams(guest: Guest) {
    let script =
        "id -u; id -g; id -G; echo $HOME; echo through >/dev/stdout; echo as-well >/proc/self/fd/2; umask";
    let plan = guest.shell(script).user("web").with("/process/user", json!({ "umask": 0o027 }));
    let container = plan.run().await;
    assert_eq!(container.wait("").await.code, 0, "{}", container.output("").await);
    let output = container.output("").await;
    assert_eq!(output, "33\n33\n33 44\n/srv/web\nthrough\n0027\nas-well");
}

async fn commands_that_cannot_be_executed_are_named(guest: Guest) {
    for (command, names) in [
        ("no-such-command", "PATH"),
        ("/no/such/file", "no such file"),
        ("/etc/not-a-program", "permission"),
        ("/bin/lost-script", "interpreter"),
    ] {
        let container = guest.command(&[command]).create().await.unwrap();
        assert_refused(container.start().await, Code::InvalidArgument, command);
        let states = guest.sandbox.containers.board.watch().0.containers;
        let state = states.iter().find(|state| state.container_id == container.id).unwrap();
        assert_eq!((state.state(), state.started_at_ns), (State::Exited, 0));
        assert!([126, 127].contains(&container.wait("").await.code));
        container.remove().await;

        let container = guest.shell("sleep 100").run().await;
        let request = container.exec_request("e", &[command]);
        assert_refused(container.start_exec(request).await, Code::InvalidArgument, names);
        // The id is free again.
        container.start_exec(container.exec_request("e", &["true"])).await.unwrap();
        container.remove().await;
    }
}

async fn seccomp_holds_for_first_process_and_execs(guest: Guest) {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
    });
    let script = "mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status; sleep 100";
    for user in ["0", "1000"] {
        for no_new_privileges in [json!(null), json!(false), json!(true)] {
            let what = format!("user {user}, noNewPrivileges {no_new_privileges}");
            let plan = guest.shell(script).user(user).with("/linux/seccomp", profile.clone());
            let container = plan.with("/process/noNewPrivileges", no_new_privileges).run().await;
            let mut host = container.open("", Stream::Stdout).await.unwrap();
            let mut text = Vec::new();
            while !String::from_utf8_lossy(&text).contains("Seccomp:\t2") {
                assert!(
                    host.read_buf(&mut text).await.unwrap() > 0,
                    "{what}: {}",
                    String::from_utf8_lossy(&text)
                );
            }
            assert!(String::from_utf8_lossy(&text).contains("not supported"), "{what}");
            let (code, output) = container.exec("mkdir /tmp/x 2>&1").await;
            assert!(code != 0 && output.contains("not supported"), "{what}: {output}");
            container.remove().await;
        }
    }
}

async fn restrictions_hold_for_first_process_and_execs(guest: Guest) {
    let report = "grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; pwd; \
                  echo x >/etc/x || echo read-only; cat /proc/kcore | wc -c; echo x >/proc/sys/kernel/domainname || echo masked; \
                  readlink /proc/self/ns/* | sort";
    let container = guest
        .shell(&format!("({report}) 2>&1; sleep 100"))
        .with("/root/readonly", json!(true))
        .with("/process/cwd", json!("/tmp"))
        .with("/process/noNewPrivileges", json!(true))
        .with("/process/oomScoreAdj", json!(123))
        .with("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "hard": 77, "soft": 77 }]))
        .run()
        .await;
    let mut host = container.open("", Stream::Stdout).await.unwrap();
    let mut first = Vec::new();
    while !String::from_utf8_lossy(&first).contains("uts:") {
        assert!(host.read_buf(&mut first).await.unwrap() > 0);
    }
    let first = String::from_utf8_lossy(&first).trim().to_owned();
    // CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, NET_RAW, MKNOD.
    for line in [
        "CapEff:\t00000000080020e3",
        "CapBnd:\t00000000080020e3",
        "NoNewPrivs:\t1",
        "123",
        "77",
        "/tmp",
        "read-only",
        "0",
    ] {
        assert!(first.lines().any(|had| had == line), "no {line:?} in {first}");
    }
    assert!(first.contains("masked"), "{first}");
    let (_, exec) = container.exec(&format!("({report}) 2>&1")).await;
    assert_eq!(exec, first);
}

async fn exec_runs_in_the_container(guest: Guest) {
    let container =
        guest.shell("sleep 100").with("/process/env", json!(["PATH=/bin", "A=1", "B=1"])).run().await;
    let mut request = container
        .exec_request("e", &["sh", "-c", "echo $A$B$C; cat /proc/self/cgroup; cat /proc/1/comm; exit 7"]);
    request.env = vec!["B=2".to_owned(), "C=3".to_owned()];
    container.start_exec(request.clone()).await.unwrap();
    assert_refused(container.start_exec(request).await, Code::AlreadyExists, "e");
    assert_eq!(container.wait("e").await.code, 7);
    assert_eq!(container.output("e").await, "123\n0::/exec-e\nsleep");
    container.remove_exec("e").await.unwrap();
    container.remove_exec("e").await.unwrap();
    let gone = container.signal("e", 9, false).await;
    assert_refused(gone, Code::NotFound, "e");
    // `yes` ends only if it may be killed by a broken pipe.
    assert_eq!(container.exec("yes | head -n 1").await, (0, "y".to_owned()));

    container.signal("", 9, false).await.unwrap();
    assert_eq!(container.wait("").await.code, 137);
    let late = container.start_exec(container.exec_request("late", &["true"])).await;
    assert_refused(late, Code::FailedPrecondition, "exited");
}

async fn killing_an_exec_tree_spares_the_container(guest: Guest) {
    let container = guest.shell("sleep 1000").run().await;
    // The second sleep leaves session and parent.
    let script = "sleep 2000 & setsid sleep 3000 & sleep 4000";
    container.start_exec(container.exec_request("tree", &["sh", "-c", script])).await.unwrap();
    container.start_exec(container.exec_request("other", &["sleep", "5000"])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_refused(container.signal("tree", 15, true).await, Code::InvalidArgument, "SIGKILL");
    container.signal("tree", 9, true).await.unwrap();
    assert_eq!(container.wait("tree").await.code, 137);
    let (_, left) = container.exec("ps -o args | grep '[s]leep [0-9]'").await;
    assert!(left.contains("sleep 1000") && left.contains("sleep 5000"), "{left}");
    assert!(
        !left.contains("sleep 2000") && !left.contains("sleep 3000") && !left.contains("sleep 4000"),
        "{left}"
    );
    container.remove_exec("tree").await.unwrap();
}

async fn signals_reach_processes(guest: Guest) {
    let container =
        guest.shell("trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 0.05; done").run().await;
    let mut host = container.open("", Stream::Stdout).await.unwrap();
    host.read_exact(&mut [0; 6]).await.unwrap();
    assert_refused(container.signal("", 65, false).await, Code::InvalidArgument, "signal");
    container.signal("", 15, false).await.unwrap();
    assert_eq!(container.wait("").await.code, 4);
    // A process that has ended is no error.
    container.signal("", 15, false).await.unwrap();
    container.signal("", 9, true).await.unwrap();
    assert_refused(
        guest.shell("x").create().await.unwrap().signal("none", 9, false).await,
        Code::NotFound,
        "none",
    );
}

async fn limits_hold_and_change_all_or_none(guest: Guest) {
    let resources = json!({ "memory": { "limit": 32 << 20 }, "cpu": { "quota": 50000, "period": 100_000, "shares": 512 },
        "pids": { "limit": 20 }, "unified": { "memory.high": "30000000" } });
    let read = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight pids.max memory.high | tr '\\n' ' '";
    let container = guest.shell("sleep 100").with("/linux/resources", resources).run().await;
    assert_eq!(container.exec(read).await.1, "33554432 50000 100000 59 20 29999104");
    container.update(json!({ "cpu": { "quota": 20000 } })).await.unwrap();
    let refused = container.update(json!({ "memory": { "limit": 64 << 20 }, "cpu": { "cpus": "99" } })).await;
    assert_refused(refused, Code::InvalidArgument, "cpuset.cpus");
    assert_eq!(container.exec(read).await.1, "33554432 20000 100000 59 20 29999104");
    let (code, _) = container.exec("for i in $(seq 30); do sleep 5 & done 2>/dev/null; wait").await;
    assert_ne!(code, 0);
    let plan = guest.shell("true").with("/linux/resources", json!({ "blockIO": { "weight": 10 } }));
    assert_refused(plan.create().await.map(|_| ()), Code::InvalidArgument, "blockIO");
}

async fn out_of_memory_is_told(guest: Guest) {
    let limits = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    let eat = "head -c 100000000 /dev/zero | tail";
    let container =
        guest.shell(&format!("{eat}; exit 5")).with("/linux/resources", limits.clone()).run().await;
    let exit = container.wait("").await;
    assert!(exit.oom_killed && exit.code == 5, "{exit:?}");
    container.remove().await;
    let container = guest.shell("sleep 100").with("/linux/resources", limits).run().await;
    container.start_exec(container.exec_request("calm", &["true"])).await.unwrap();
    assert!(!container.wait("calm").await.oom_killed);
    container.start_exec(container.exec_request("eat", &["sh", "-c", eat])).await.unwrap();
    assert!(container.wait("eat").await.oom_killed);
}

async fn pod_pid_namespace_is_shared_and_collects_orphans(guest: Guest) {
    let first = guest.shell("exec sleep 1234").pid_namespace(PidNamespace::Pod, "").run().await;
    let second =
        guest.shell("echo $$; sleep 4321 & exec sleep 2345").pid_namespace(PidNamespace::Pod, "").run().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (_, seen) = first.exec("ps -o args | cut -c1-20").await;
    assert!(seen.contains("sleep 1234") && seen.contains("sleep 2345"), "{seen}");
    assert_ne!(second.open("", Stream::Stdout).await.unwrap().read_u8().await.unwrap(), b'1');
    // The end of the first process of one ends all of that one, and nothing of the other.
    second.signal("", 9, false).await.unwrap();
    second.wait("").await;
    let (_, seen) = first.exec("sleep 0.2; ps -o stat,args").await;
    assert!(!seen.contains("sleep 4321") && seen.contains("sleep 1234") && !seen.contains("Z "), "{seen}");
}

async fn target_pid_namespace_is_joined(guest: Guest) {
    let target = guest.shell("exec sleep 1234").run().await;
    let (_, seen) = guest
        .shell("cat /proc/1/cmdline | tr '\\0' ' '")
        .pid_namespace(PidNamespace::Target, &target.id)
        .outcome()
        .await;
    assert_eq!(seen, "sleep 1234");
    for gone in ["none", ""] {
        let plan = guest.shell("true").pid_namespace(PidNamespace::Target, gone);
        assert_refused(plan.create().await.map(|_| ()), Code::FailedPrecondition, gone);
    }
}

async fn terminals_have_a_size_and_take_input(guest: Guest) {
    let script = "tty; stty size; read line; echo got $line";
    let container = guest.shell(script).terminal().stdin(false).create().await.unwrap();
    container.resize("", 101, 33).await.unwrap();
    container.start().await.unwrap();
    let mut stdin = container.open("", Stream::Stdin).await.unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    assert_eq!(container.wait("").await.code, 0);
    let output = container.output("").await;
    assert!(
        output.contains("33 101") && output.contains("got hello") && output.contains("/dev/"),
        "{output}"
    );
    assert!(container.open("", Stream::Stderr).await.unwrap_err().contains("terminal"));

    let container = guest.shell("sleep 100").user("web").run().await;
    let request = StartExecRequest {
        terminal: true,
        stdin: true,
        ..container.exec_request("t", &["sh", "-c", script])
    };
    container.start_exec(request).await.unwrap();
    container.resize("t", 80, 25).await.unwrap();
    container.open("t", Stream::Stdin).await.unwrap().write_all(b"bye\n").await.unwrap();
    assert_eq!(container.wait("t").await.code, 0);
    assert!(container.output("t").await.contains("got bye"));
    assert_refused(container.resize("", 80, 25).await, Code::InvalidArgument, "terminal");
}

async fn stdin_reaches_the_process(guest: Guest) {
    let container = guest.shell("cat; echo end").stdin(true).create().await.unwrap();
    // Before it runs.
    let mut stdin = container.open("", Stream::Stdin).await.unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    container.start().await.unwrap();
    stdin.write_all(b"two\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(container.wait("").await.code, 0);
    assert_eq!(container.output("").await, "one\ntwo\nend");

    let container = guest.shell("sleep 100").run().await;
    let request = StartExecRequest { stdin: true, ..container.exec_request("e", &["wc", "-c"]) };
    // The stream is asked for before its process is made.
    let early = tokio::spawn({
        let container = container.clone();
        async move { container.open("e", Stream::Stdin).await }
    });
    tokio::task::yield_now().await;
    container.start_exec(request).await.unwrap();
    let mut stdin = early.await.unwrap().unwrap();
    stdin.write_all(&vec![7; 1 << 20]).await.unwrap();
    stdin.shutdown().await.unwrap();
    container.wait("e").await;
    assert_eq!(container.output("e").await, "1048576");
}

async fn much_output_is_not_lost(guest: Guest) {
    let container = guest.shell("seq 200000").run().await;
    let mut host = container.open("", Stream::Stdout).await.unwrap();
    let mut text = Vec::new();
    loop {
        let mut chunk = [0; 8192];
        let count = host.read(&mut chunk).await.unwrap();
        if count == 0 {
            break;
        }
        text.extend_from_slice(&chunk[..count]);
        host.write_u64_le(text.len() as u64).await.unwrap();
    }
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(text == expected.as_bytes());
}

async fn failed_creations_leave_nothing(guest: Guest) {
    let plan = |pointer: &str, value| guest.shell("true").with(pointer, value);
    for (plan, code, names) in [
        (plan("/process/args", json!([])), Code::InvalidArgument, "process.args"),
        (plan("/process/cwd", json!("relative")), Code::InvalidArgument, "cwd"),
        (plan("/hooks", json!({ "prestart": [] })), Code::InvalidArgument, "hooks"),
        (guest.shell("true").user("nobody-knows"), Code::InvalidArgument, "nobody-knows"),
        (plan("/linux/sysctl", json!({ "kernel.shmmax": "1" })), Code::InvalidArgument, "kernel.shmmax"),
        (
            plan("/linux/resources", json!({ "memory": { "limit": -7 } })),
            Code::InvalidArgument,
            "memory.limit",
        ),
        (plan("/linux/resources", json!({ "cpu": { "cpus": "99" } })), Code::InvalidArgument, "cpuset.cpus"),
        (
            plan(
                "/mounts/0",
                json!({ "destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"] }),
            ),
            Code::Internal,
            "",
        ),
        (plan("/process/cwd", json!("/no/such/directory")), Code::Internal, ""),
    ] {
        let id = plan.id.clone();
        let before = guest.what_exists();
        let result = plan.create().await.map(|_| ());
        println!("    {}", result.as_ref().unwrap_err().message());
        assert_refused(result, code, names);
        assert_eq!(guest.what_is_new(&before).await, Vec::<String>::new());
        // The id is free again.
        guest.shell("true").with_id(&id).run().await.remove().await;
    }
}

async fn removal_ends_whatever_state(guest: Guest) {
    let before = guest.what_exists();
    let created = guest.shell("true").create().await.unwrap();
    let running = guest.shell("sleep 100 & setsid sleep 200 & sleep 300").run().await;
    running
        .start_exec(running.exec_request("e", &["sh", "-c", "setsid sleep 400 & sleep 500"]))
        .await
        .unwrap();
    let exited = guest.shell("true").run().await;
    exited.wait("").await;
    // Nobody reads it: the process is held up.
    let writing = guest.shell("yes").run().await;
    let mut stdout = running.open("", Stream::Stdout).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    for container in [created, running, exited, writing] {
        container.remove().await;
        container.remove().await;
        assert_refused(container.start().await, Code::NotFound, &container.id);
    }
    assert_eq!(stdout.read(&mut [0]).await.unwrap(), 0);
    guest.remove("never-was").await.unwrap();
    assert_eq!(guest.what_is_new(&before).await, Vec::<String>::new());
}

async fn calls_on_one_container_at_a_time_are_safe(guest: Guest) {
    let creates = (0..4).map(|_| guest.shell("sleep 100").with_id("same").create());
    let results = futures_util::future::join_all(creates).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let container = results.into_iter().find_map(Result::ok).unwrap();
    let starts = futures_util::future::join_all((0..4).map(|_| container.start())).await;
    assert_eq!(starts.iter().filter(|result| result.is_ok()).count(), 1);
    let execs: Vec<String> = (0..8).map(|n| format!("e{n}")).collect();
    let started =
        execs.iter().map(|exec| container.start_exec(container.exec_request(exec, &["sh", "-c", "exit 6"])));
    futures_util::future::join_all(started)
        .await
        .into_iter()
        .for_each(|result| assert!(result.is_ok(), "{result:?}"));
    for exec in &execs {
        assert_eq!(container.wait(exec).await.code, 6);
    }
    // A call whose caller goes away runs to its end.
    let abandoned =
        tokio::time::timeout(Duration::from_millis(1), guest.shell("true").with_id("abandoned").create())
            .await;
    assert!(abandoned.is_err());
    let removals = futures_util::future::join_all((0..4).map(|_| guest.remove("same"))).await;
    assert!(removals.iter().all(Result::is_ok));
    guest.remove("abandoned").await.unwrap();
    let many = futures_util::future::join_all((0..8).map(|_| guest.shell("true").outcome())).await;
    assert!(many.iter().all(|(code, _)| *code == 0), "{many:?}");
}

async fn watchers_see_a_snapshot_and_every_change(guest: Guest) {
    let before = guest.shell("sleep 100").run().await;
    let mut events = crate::container::watch(&guest.sandbox).unwrap();
    let Some(Ok(Event { event: Some(event::Event::Snapshot(snapshot)) })) = events.next().await else {
        panic!()
    };
    assert_eq!(snapshot.containers.len(), 1);
    assert_eq!(
        (&snapshot.containers[0].container_id, snapshot.containers[0].state()),
        (&before.id, State::Running)
    );
    let container = guest.shell("exit 9").run().await;
    container.wait("").await;
    let mut states = Vec::new();
    for _ in 0..3 {
        let Some(Ok(Event { event: Some(event::Event::Changed(change)) })) = events.next().await else {
            panic!()
        };
        assert_eq!(change.container_id, container.id);
        states.push((change.state(), change.exit.map(|exit| exit.code)));
    }
    assert_eq!(states, [(State::Created, None), (State::Running, None), (State::Exited, Some(9))]);
}

/// Not a check: what calls cost here, for comparison between versions.
async fn times(guest: Guest) {
    let container = guest.shell("sleep 100").run().await;
    let mut execs = Vec::new();
    for n in 0..20 {
        let began = Instant::now();
        let id = format!("t{n}");
        container.start_exec(container.exec_request(&id, &["true"])).await.unwrap();
        let started = began.elapsed();
        container.wait(&id).await;
        let ended = began.elapsed();
        container.remove_exec(&id).await.unwrap();
        execs.push((began.elapsed(), started, ended));
    }
    execs.sort();
    println!("    exec: {:?} (started, ended, removed: {:?})", execs[10].0, execs[10]);
    let mut containers = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let container = guest.shell("true").create().await.unwrap();
        let created = began.elapsed();
        container.start().await.unwrap();
        let started = began.elapsed();
        container.wait("").await;
        let ended = began.elapsed();
        container.remove().await;
        containers.push((began.elapsed(), created, started, ended));
    }
    containers.sort();
    println!("    container: created, started, ended, removed: {:?}", containers[5]);
}
