//! Cases about containers from creation to removal: what failed leaves nothing, calls that meet, what
//! watchers are told. And how long each part of a life takes.

use super::super::guest::{Guest, assert_refused};
use futures_util::StreamExt;
use isopod_protocols::agent::{Event, State, Stream, event};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tonic::Code;

pub async fn failed_creations_leave_nothing(guest: Guest) {
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
            Code::InvalidArgument,
            "/no/such/source",
        ),
        (
            plan("/process/cwd", json!("/bin/busybox")),
            Code::InvalidArgument,
            "/bin/busybox is not a directory",
        ),
        (plan("/process/cwd", json!("/proc/no/such")), Code::Internal, ""),
        (
            guest.shell("true").volumes(&["/usr", "/bin/busybox"]),
            Code::InvalidArgument,
            "volume /bin/busybox",
        ),
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

pub async fn removal_ends_whatever_state(guest: Guest) {
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
    // The host's end is the case's own.
    drop(stdout);
    guest.remove("never-was").await.unwrap();
    assert_eq!(guest.what_is_new(&before).await, Vec::<String>::new());
}

pub async fn calls_on_one_container_at_a_time_are_safe(guest: Guest) {
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

pub async fn watchers_see_a_snapshot_and_every_change(guest: Guest) {
    let before = guest.shell("sleep 100").run().await;
    let mut events = crate::server::watch::watch(&guest.sandbox.containers.states);
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
pub async fn times(guest: Guest) {
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
