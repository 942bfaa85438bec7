//! Cases about what a container is held to: its own view, its user, seccomp, capabilities, limits.

use super::super::guest::{Guest, assert_refused};
use isopod_protocols::agent::Stream;
use serde_json::json;
use std::fs;
use tokio::io::AsyncReadExt;
use tonic::Code;

pub async fn container_sees_itself_alone(guest: Guest) {
    let script = "echo $$; cat /proc/1/cmdline | tr '\\0' ' '; hostname; cat /proc/self/cgroup; ls /proc | grep -c '^[0-9]'";
    let (code, output) = guest.shell(script).outcome().await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((code, lines[0]), (0, "1"), "{output}");
    assert!(lines[1].starts_with("/bin/sh -c") && lines[1].ends_with("guest"), "{output}");
    assert_eq!(lines[2], "0::/", "{output}");
}

pub async fn user_of_the_image_owns_its_process_and_streams(guest: Guest) {
    let script =
        "id -u; id -g; id -G; echo $HOME; echo through >/dev/stdout; echo as-well >/proc/self/fd/2; umask";
    let plan = guest.shell(script).user("web").with("/process/user", json!({ "umask": 0o027 }));
    let container = plan.run().await;
    assert_eq!(container.wait("").await.code, 0, "{}", container.output("").await);
    let output = container.output("").await;
    assert_eq!(output, "33\n33\n33 44\n/srv/web\nthrough\n0027\nas-well");
}

pub async fn seccomp_holds_for_first_process_and_execs(guest: Guest) {
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

pub async fn restrictions_hold_for_first_process_and_execs(guest: Guest) {
    let report = "grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; pwd; \
                  echo x >/etc/x || echo read-only; cat /proc/kcore | wc -c; echo x >/proc/sys/kernel/domainname || echo masked; \
                  for file in /proc/self/ns/*; do readlink $file; done | sort";
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
        let count = host.read_buf(&mut first).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&first));
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

pub async fn limits_hold_and_change_all_or_none(guest: Guest) {
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

/// Root of a container makes a group below, a user namespace, and in it a cgroup namespace whose root is that
/// group: from there the kernel lets it write to the limits in its container's own root. The image's
/// `unshare` makes no cgroup namespace, so the case writes there itself.
pub async fn limits_hold_against_root_in_a_user_namespace(guest: Guest) {
    let resources = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 }, "pids": { "limit": 20 },
        "cpu": { "quota": 20000, "period": 100_000 } });
    let container = guest.shell("sleep 100").with("/linux/resources", resources).run().await;
    let group = format!("/sys/fs/cgroup/containers/{}", container.id);
    for (file, lifted) in [("memory.max", "max"), ("pids.max", "max"), ("cpu.max", "max 100000")] {
        fs::write(format!("{group}/own/{file}"), lifted).unwrap();
    }
    let read = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max | tr '\\n' ' '";
    assert_eq!(container.exec(read).await.1, "max max max 100000");
    let eat = ["sh", "-c", "head -c 100000000 /dev/zero | tail"];
    container.start_exec(container.exec_request("eat", &eat)).await.unwrap();
    assert!(container.wait("eat").await.oom_killed);
    container.exec("timeout 1 sh -c 'while :; do :; done'").await;
    let stat = fs::read_to_string(format!("{group}/cpu.stat")).unwrap();
    assert!(stat.lines().any(|line| line.starts_with("nr_throttled ") && line != "nr_throttled 0"), "{stat}");
    // Last of the three: what this leaves counts until the container ends, as its first process collects
    // nobody.
    let (code, _) = container.exec("for i in $(seq 30); do sleep 5 & done 2>/dev/null; wait").await;
    assert_ne!(code, 0);
    // New limits are where programs look for them, whatever was there.
    container
        .update(
            json!({ "memory": { "limit": 24 << 20 }, "pids": { "limit": 30 }, "cpu": { "quota": 30000 } }),
        )
        .await
        .unwrap();
    assert_eq!(container.exec(read).await.1, "25165824 30 30000 100000");
    // An idle group takes no weight. The container's own is one, which does not keep its limits from being
    // set.
    fs::write(format!("{group}/own/cpu.idle"), "1").unwrap();
    assert!(fs::write(format!("{group}/own/cpu.weight"), "50").is_err());
    container.update(json!({ "memory": { "limit": 32 << 20 }, "cpu": { "shares": 512 } })).await.unwrap();
    let upper =
        ["memory.max", "cpu.weight"].map(|file| fs::read_to_string(format!("{group}/{file}")).unwrap());
    assert_eq!(upper, ["33554432\n", "59\n"]);
}

pub async fn out_of_memory_is_told(guest: Guest) {
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
