//! What a daemon finds that starts where another one was killed.

use crate::fakes::{FakeNode, Wishes, pod};
use isopod_runtime::agent_client::ENTROPY;
use isopod_runtime::sandbox::{SandboxEvent, SandboxSpec, State};
use serde_json::{Value, json};
use std::fs;

#[tokio::test]
async fn running_sandbox_is_taken_back_and_can_be_stopped() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(SandboxSpec { handler: "isopod".into(), ..pod("web") }).await.unwrap();
    let before = node.sandboxes.get(&id).unwrap().snapshot();

    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    assert_eq!(sandbox.snapshot(), before);
    sandbox.enter().await.unwrap().machine.agent.hello([0; ENTROPY]).await.unwrap();
    node.sandboxes.stop(&sandbox).await.unwrap();
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn vm_that_died_meanwhile_makes_the_sandbox_lost() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let vm = node.hypervisor.vm(&id).unwrap();

    let mut node = node.restarted();
    vm.crash();
    node.sandboxes.restore().await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    assert_eq!(sandbox.state(), State::Lost);
    let mut events = node.events.recv().await.unwrap();
    assert_eq!(events.sandbox_id, id);
    assert!(matches!(events.queue.recv().await, Some(SandboxEvent::Gone)));
    node.sandboxes.stop(&sandbox).await.unwrap();
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn half_made_sandbox_is_undone() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.slow_identity);
    // A daemon killed at this moment takes its tasks with it; here that is a runtime that ends.
    let (sandboxes, wishes) = (node.sandboxes.clone(), node.wishes.clone());
    let daemon = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.spawn(async move { sandboxes.start(pod("web")).await });
        runtime.block_on(wishes.asked.notified());
        runtime.shutdown_background();
    });
    daemon.await.unwrap();
    assert!(!node.left().is_empty());

    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    // The VM is the fake's: on a host it ends with its cgroup.
    let strangers: Vec<String> = node.left().into_iter().filter(|left| left != "1 vms").collect();
    assert_eq!(strangers, [""; 0]);
    assert!(node.sandboxes.list().is_empty());
}

#[tokio::test]
async fn stopped_and_stuck_sandboxes_keep_their_state() {
    let node = FakeNode::new();
    let stopped = node.sandboxes.start(pod("a")).await.unwrap();
    let stuck = node.sandboxes.start(pod("b")).await.unwrap();
    node.sandboxes.stop(&node.sandboxes.get(&stopped).unwrap()).await.unwrap();
    Wishes::set(&node.wishes.stuck_network);
    node.sandboxes.stop(&node.sandboxes.get(&stuck).unwrap()).await.unwrap_err();
    Wishes::clear(&node.wishes.stuck_network);

    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    assert_eq!(node.sandboxes.get(&stopped).unwrap().state(), State::Stopped);
    let stuck = node.sandboxes.get(&stuck).unwrap();
    assert_eq!(stuck.state(), State::Stopping);
    node.sandboxes.stop(&stuck).await.unwrap();
    assert_eq!(stuck.state(), State::Stopped);
}

#[tokio::test]
async fn user_of_a_vm_that_may_still_run_is_given_to_no_other() {
    let node = FakeNode::new();
    let lost = node.sandboxes.start(pod("lost")).await.unwrap();
    let sandbox = node.sandboxes.get(&lost).unwrap();
    let (uid, cgroup) = (sandbox.snapshot().uid, sandbox.cgroup.path().to_owned());
    let record = node.directory.path().join(format!("state/sandboxes/{lost}.json"));
    std::fs::write(record, "half a rec").unwrap();
    // As of a process that does not end.
    let process = cgroup.join("process");
    std::fs::write(&process, "").unwrap();

    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    let user = |id: &String, node: &FakeNode| node.sandboxes.get(id).unwrap().snapshot().uid;
    let meanwhile = node.sandboxes.start(pod("meanwhile")).await.unwrap();
    assert_ne!(user(&meanwhile, &node), uid);

    std::fs::remove_file(process).unwrap();
    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    let later = node.sandboxes.start(pod("later")).await.unwrap();
    assert_eq!(user(&later, &node), uid);
    assert!(user(&meanwhile, &node) != uid);
}

#[tokio::test]
async fn pods_of_a_daemon_without_records_of_users_keep_theirs() {
    let node = FakeNode::new();
    let old = node.sandboxes.start(pod("old")).await.unwrap();
    let users = node.directory.path().join("state/users");
    std::fs::remove_dir_all(&users).unwrap();
    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    let new = node.sandboxes.start(pod("new")).await.unwrap();
    let user = |id: &String| node.sandboxes.get(id).unwrap().snapshot().uid;
    assert_ne!(user(&old), user(&new));
    assert_eq!(std::fs::read_dir(users).unwrap().count(), 2);
}

#[tokio::test]
async fn network_of_no_sandbox_is_removed() {
    let node = FakeNode::new();
    node.networks.held.lock().unwrap().insert("stranger".into());
    node.sandboxes.restore().await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn sandbox_of_an_earlier_version_is_taken_back_and_its_record_is_rewritten_when_it_changes() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let record = node.directory.path().join(format!("state/sandboxes/{id}.json"));
    let mut document: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let fields = document.as_object_mut().unwrap();
    assert_eq!(fields.remove("version"), Some(2.into()));
    fields.remove("spec");
    fields.insert("handler".into(), "".into());
    let metadata = json!({"name": "web", "namespace": "default", "uid": "uid-of-web", "attempt": 0});
    fields.insert("config".into(), json!({ "metadata": metadata, "labels": {"app": "web"} }));
    fs::write(&record, document.to_string()).unwrap();

    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    assert_eq!(sandbox.state(), State::Ready);
    assert_eq!((&sandbox.spec.name, sandbox.spec.labels["app"].as_str()), (&pod("web").name, "web"));
    node.sandboxes.stop(&sandbox).await.unwrap();
    let document: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert_eq!(document["version"], 2);
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn sandbox_of_a_version_to_come_is_not_listed_and_its_record_is_kept_aside() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let record = node.directory.path().join(format!("state/sandboxes/{id}.json"));
    let document = fs::read_to_string(&record).unwrap().replace("\"version\": 2", "\"version\": 3");
    fs::write(&record, document).unwrap();

    let node = node.restarted();
    node.sandboxes.restore().await.unwrap();
    assert!(node.sandboxes.list().is_empty());
    assert!(!record.exists() && record.with_extension("corrupt").exists());
    assert!(node.networks.held.lock().unwrap().is_empty(), "its network stays");
}
