//! Cases about processes: a container's first one, execs, signals, the PID namespaces that containers share.

use super::super::guest::{Guest, assert_refused};
use isopod_protocols::agent::{PidNamespace, State, Stream};
use serde_json::json;
use std::fs;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tonic::Code;

pub async fn command_runs_and_its_output_and_exit_arrive(guest: Guest) {
    let container = guest.shell("echo out; echo err >&2; exit 3").run().await;
    let exit = container.wait("").await;
    assert_eq!((exit.code, exit.oom_killed), (3, false));
    assert_eq!(container.output("").await, "out\nerr");
    // Still there, as long as the container is.
    assert_eq!(container.wait("").await, exit);
    assert_eq!(container.output("").await, "out\nerr");
    assert_refused(container.start().await, Code::FailedPrecondition, "exited");
}

pub async fn commands_that_cannot_be_executed_are_named(guest: Guest) {
    for (command, names) in [
        ("no-such-command", "PATH"),
        ("/no/such/file", "no such file"),
        ("/etc/not-a-program", "permission"),
        ("/bin/lost-script", "interpreter"),
    ] {
        let container = guest.command(&[command]).create().await.unwrap();
        assert_refused(container.start().await, Code::InvalidArgument, command);
        let states = guest.sandbox.containers.states.watch().0.containers;
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

pub async fn exec_runs_in_the_container(guest: Guest) {
    let container =
        guest.shell("sleep 100").with("/process/env", json!(["PATH=/bin", "A=1", "B=1"])).run().await;
    let mut request = container
        .exec_request("e", &["sh", "-c", "echo $A$B$C; cat /proc/self/cgroup; cat /proc/1/comm; exit 7"]);
    request.env = vec![b"B=2".to_vec(), b"C=3".to_vec()];
    container.start_exec(request.clone()).await.unwrap();
    assert_refused(container.start_exec(request).await, Code::AlreadyExists, "e");
    assert_eq!(container.wait("e").await.code, 7);
    assert_eq!(container.output("e").await, "123\n0::/\nsleep");
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

pub async fn exec_does_not_follow_the_first_process_into_its_own_mounts(guest: Guest) {
    let script = "echo foreign >/tmp/foreign && mount --bind /tmp/foreign /etc/hostname && \
                  cat /etc/hostname; exec sleep 100";
    let command = ["unshare", "-U", "-m", "-r", "sh", "-c", script];
    let container = guest.command(&command).user("1000").run().await;
    let mut told = [0; 8];
    container.open("", Stream::Stdout).await.unwrap().read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"foreign\n");
    let (_, seen) = container.exec("cat /etc/hostname; id -u; readlink /proc/self/ns/user").await;
    let user_namespace = fs::read_link("/proc/self/ns/user").unwrap();
    assert_eq!(seen, format!("guest\n1000\n{}", user_namespace.display()));
    container.remove().await;
}

pub async fn killing_an_exec_tree_spares_the_container(guest: Guest) {
    let container = guest.shell("sleep 1000").run().await;
    // The second sleep leaves the session, the third one its parent: it is the container's.
    let script = "sleep 2000 & setsid sleep 3000 & (sleep 6000 &); sleep 4000";
    container.start_exec(container.exec_request("tree", &["sh", "-c", script])).await.unwrap();
    container.start_exec(container.exec_request("other", &["sleep", "5000"])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_refused(container.signal("tree", 15, true).await, Code::InvalidArgument, "SIGKILL");
    container.signal("tree", 9, true).await.unwrap();
    assert_eq!(container.wait("tree").await.code, 137);
    let (_, left) = container.exec("ps -o args | grep '[s]leep [0-9]'").await;
    for lives in ["sleep 1000", "sleep 5000", "sleep 6000"] {
        assert!(left.contains(lives), "{lives}: {left}");
    }
    assert!(
        !left.contains("sleep 2000") && !left.contains("sleep 3000") && !left.contains("sleep 4000"),
        "{left}"
    );
    container.remove_exec("tree").await.unwrap();
}

pub async fn what_an_exec_leaves_in_the_background_lives_until_the_container_ends(guest: Guest) {
    let container = guest.shell("exec sleep 1000").run().await;
    // It holds the exec's pipes and writes to them after the exec was removed.
    let script = "(while :; do echo more; sleep 0.05; done) & setsid sleep 2000 & echo begun";
    container.start_exec(container.exec_request("hook", &["sh", "-c", script])).await.unwrap();
    assert_eq!(container.wait("hook").await.code, 0);
    container.remove_exec("hook").await.unwrap();
    // One that still runs is killed alone.
    let script = "sleep 3000 & echo; wait";
    container.start_exec(container.exec_request("left", &["sh", "-c", script])).await.unwrap();
    container.open("left", Stream::Stdout).await.unwrap().read_u8().await.unwrap();
    container.remove_exec("").await.unwrap();
    let (_, seen) = container.exec("sleep 0.3; ps -o args; echo /sys/fs/cgroup/*/").await;
    for lives in ["more; sleep 0.05", "sleep 2000", "sleep 3000"] {
        assert!(seen.contains(lives), "{lives}: {seen}");
    }
    assert!(!seen.contains("echo; wait") && seen.ends_with("\n/sys/fs/cgroup/*/"), "{seen}");
    container.remove().await;
}

pub async fn execs_follow_their_container_into_a_nested_group(guest: Guest) {
    let options = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
    let script = "cd /sys/fs/cgroup && mkdir init && echo $$ >init/cgroup.procs && \
                  echo +memory +pids >cgroup.subtree_control && echo nested; exec sleep 1000";
    let container = guest.shell(script).with("/mounts/5/options", options).run().await;
    container.open("", Stream::Stdout).await.unwrap().read_exact(&mut [0; 6]).await.unwrap();
    assert_eq!(container.exec("cat /proc/self/cgroup").await, (0, "0::/init".to_owned()));
    // An exec may nest further, and leave processes there.
    let script = "mkdir -p /sys/fs/cgroup/deep/er && echo $$ >/sys/fs/cgroup/deep/er/cgroup.procs; \
                  setsid sleep 2000 >/dev/null 2>&1 & cat /proc/self/cgroup";
    assert_eq!(container.exec(script).await, (0, "0::/deep/er".to_owned()));
    let late = ["sh", "-c", "sleep 3000 & sleep 4000"];
    container.start_exec(container.exec_request("late", &late)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    container.signal("late", 9, true).await.unwrap();
    assert_eq!(container.wait("late").await.code, 137);
    container.remove_exec("").await.unwrap();
    let (_, left) = container.exec("sleep 0.3; ps -o args").await;
    assert!(left.contains("sleep 2000"), "{left}");
    assert!(!left.contains("sleep 3000") && !left.contains("sleep 4000"), "{left}");
    container.remove().await;
}

pub async fn signals_reach_processes(guest: Guest) {
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

pub async fn pod_pid_namespace_is_shared_and_collects_orphans(guest: Guest) {
    let first = guest.shell("exec sleep 1234").pid_namespace(PidNamespace::Pod, "").run().await;
    let second =
        guest.shell("echo $$; sleep 4321 & exec sleep 2345").pid_namespace(PidNamespace::Pod, "").run().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (_, seen) = first.exec("ps -o args | cut -c1-20").await;
    assert!(seen.contains("sleep 1234") && seen.contains("sleep 2345"), "{seen}");
    assert_ne!(second.open("", Stream::Stdout).await.unwrap().read_u8().await.unwrap(), b'1');
    // The process that holds the namespace can nothing, whoever takes it over.
    let (_, holder) =
        first.exec("grep -E '^(Uid|CapInh|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status").await;
    let none = "0000000000000000";
    let expected = format!(
        "Uid:\t65535\t65535\t65535\t65535\nCapInh:\t{none}\nCapPrm:\t{none}\nCapBnd:\t{none}\n\
         NoNewPrivs:\t1\nSeccomp:\t2"
    );
    assert_eq!(holder, expected);
    // The end of the first process of one ends all of that one, and nothing of the other.
    second.signal("", 9, false).await.unwrap();
    second.wait("").await;
    let (_, seen) = first.exec("sleep 0.2; ps -o stat,args").await;
    assert!(!seen.contains("sleep 4321") && seen.contains("sleep 1234") && !seen.contains("Z "), "{seen}");
}

pub async fn target_pid_namespace_is_joined(guest: Guest) {
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
