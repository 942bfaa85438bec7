//! Start, stop and removal, and what may happen to them.

use crate::fakes::{FakeNode, Wishes, pod};
use isopod_runtime::sandbox::{SandboxError, SandboxEvent, SandboxSpec, SandboxSpecError, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

#[tokio::test]
async fn sandbox_is_ready_with_its_network_and_leaves_nothing() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    assert_eq!(sandbox.state(), State::Ready);
    let record = sandbox.snapshot();
    assert_eq!(record.addresses[0].to_string(), "10.9.8.7");
    assert_eq!(record.guest.kernel_release, r"6.12.0-fake\u{1b}[2J", "text of a guest is made printable");
    let vm = node.hypervisor.vm(&id).unwrap();
    assert_eq!(vm.extents().values().collect::<Vec<_>>(), [&(16 << 20, false)]);

    node.sandboxes.stop(&sandbox).await.unwrap();
    assert_eq!(sandbox.state(), State::Stopped);
    assert_eq!(node.sandboxes.list().len(), 1, "a stopped sandbox is still listed");
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn stop_twice_succeeds_and_so_do_concurrent_stops() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    let (a, b, c) = tokio::join!(
        node.sandboxes.stop(&sandbox),
        node.sandboxes.stop(&sandbox),
        node.sandboxes.stop(&sandbox),
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    node.sandboxes.stop(&sandbox).await.unwrap();
    assert_eq!(sandbox.state(), State::Stopped);
}

#[tokio::test]
async fn running_sandbox_is_not_removed() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    let error = node.sandboxes.remove(&sandbox).await.unwrap_err();
    assert!(matches!(error, SandboxError::NotReady { state: State::Ready, .. }), "{error}");
}

#[tokio::test]
async fn same_pod_twice_is_refused_while_the_first_is_there() {
    let node = FakeNode::new();
    let (first, second) = tokio::join!(node.sandboxes.start(pod("web")), node.sandboxes.start(pod("web")));
    let id = first.unwrap();
    let error = second.unwrap_err();
    assert!(matches!(&error, SandboxError::NameTaken { id: taken, .. } if *taken == id), "{error}");
    let sandbox = node.sandboxes.get(&id).unwrap();
    node.sandboxes.stop(&sandbox).await.unwrap();
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.sandboxes.start(pod("web")).await.unwrap();
}

#[tokio::test]
async fn many_sandboxes_at_once_have_users_of_their_own() {
    let node = FakeNode::new();
    let names: Vec<String> = (0..20).map(|n| format!("pod-{n}")).collect();
    let starts = names.iter().map(|name| node.sandboxes.start(pod(name)));
    let ids = futures_util::future::try_join_all(starts).await.unwrap();
    let uid = |id: &String| node.sandboxes.get(id).unwrap().snapshot().uid;
    let mut uids: Vec<u32> = ids.iter().map(uid).collect();
    uids.sort_unstable();
    uids.dedup();
    assert_eq!(uids.len(), 20);
}

#[tokio::test]
async fn pods_beyond_two_per_processor_wait_for_a_turn() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.slow_identity);
    let turns = 2 * std::thread::available_parallelism().unwrap().get();
    let start = |n| {
        let sandboxes = Arc::clone(&node.sandboxes);
        tokio::spawn(async move { sandboxes.start(pod(&format!("pod-{n}"))).await })
    };
    let starts: Vec<_> = (0..turns + 3).map(start).collect();
    let begun = || node.networks.held.lock().unwrap().len();
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if begun() >= turns {
            break;
        }
    }
    // time enough for one more, if it did not have to wait
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(begun(), turns, "of {} pods", turns + 3);
    starts.iter().for_each(JoinHandle::abort);
    node.nothing_is_left().await;
}

#[tokio::test]
async fn network_that_fails_undoes_the_vm_too() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.no_network);
    let error = node.sandboxes.start(pod("web")).await.unwrap_err();
    assert!(matches!(error, SandboxError::Network(_)), "{error}");
    node.nothing_is_left().await;
}

#[tokio::test]
async fn agent_that_refuses_is_quoted_and_everything_is_undone() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.no_identity);
    let error = node.sandboxes.start(pod("web")).await.unwrap_err();
    assert!(
        error.to_string().ends_with("refused SetUpSandbox: no such sysctl: \\u{7}kernel.nonsense"),
        "{error}"
    );
    node.nothing_is_left().await;
}

#[tokio::test]
async fn caller_that_leaves_leaves_nothing() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.slow_identity);
    {
        let start = node.sandboxes.start(pod("web"));
        tokio::select! {
            _ = start => panic!("the agent never answers"),
            () = node.wishes.asked.notified() => {}
        }
    }
    node.nothing_is_left().await;
    Wishes::clear(&node.wishes.slow_identity);
    node.sandboxes.start(pod("web")).await.unwrap();
}

#[tokio::test]
async fn undo_that_fails_stays_visible_and_the_next_stop_finishes_it() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.no_identity);
    Wishes::set(&node.wishes.stuck_network);
    let error = node.sandboxes.start(pod("web")).await.unwrap_err();
    assert!(error.to_string().contains("not all could be undone: network:"), "{error}");
    let sandbox = node.sandboxes.list().pop().unwrap();
    assert_eq!(sandbox.state(), State::Stopping);
    assert!(node.sandboxes.stop(&sandbox).await.is_err());

    Wishes::clear(&node.wishes.stuck_network);
    node.sandboxes.stop(&sandbox).await.unwrap();
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn vm_that_dies_makes_the_sandbox_lost_and_tells_its_containers() {
    let mut node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    node.hypervisor.vm(&id).unwrap().crash();
    let mut events = node.events.recv().await.unwrap();
    assert_eq!(events.sandbox_id, id);
    assert!(matches!(events.queue.recv().await, Some(SandboxEvent::Gone)));
    assert_eq!(sandbox.state(), State::Lost);
    assert!(matches!(sandbox.enter().await.err(), Some(SandboxError::NotReady { .. })));
    node.sandboxes.stop(&sandbox).await.unwrap();
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn stop_waits_for_those_inside_after_killing_the_vm() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    let inside = sandbox.enter().await.unwrap();
    let stop = node.sandboxes.stop(&sandbox);
    tokio::pin!(stop);
    tokio::select! {
        _ = &mut stop => panic!("somebody is inside"),
        () = inside.machine.vm.ended() => {}
    }
    assert!(sandbox.machine().is_err(), "nobody enters any more");
    drop(inside);
    stop.await.unwrap();
}

#[tokio::test]
async fn ids_are_found_by_a_unique_prefix_only() {
    let node = FakeNode::new();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    assert_eq!(node.sandboxes.get(&id[..8]).unwrap().id, id);
    assert!(matches!(node.sandboxes.get("").err(), Some(SandboxError::NotFound(_))));
    assert!(matches!(node.sandboxes.get("nothing").err(), Some(SandboxError::NotFound(_))));
}

#[tokio::test]
async fn pods_whose_annotations_would_not_fit_the_list_of_all_are_refused() {
    let node = FakeNode::new();
    let annotated = |name: &str, bytes: usize| {
        let mut spec = pod(name);
        spec.annotations.insert("note".into(), "x".repeat(bytes));
        spec
    };
    let error = node.sandboxes.start(annotated("huge", 600 << 10)).await.unwrap_err().to_string();
    assert!(error.contains("labels and annotations of it would take"), "{error}");
    // As long as Kubernetes lets them be.
    let mut refused = None;
    for number in 0..64 {
        if let Err(error) = node.sandboxes.start(annotated(&format!("pod-{number}"), 256 << 10)).await {
            refused = Some((number, error.to_string()));
            break;
        }
    }
    let (number, error) = refused.expect("64 pods of 256 KiB would be an answer of 16 MiB");
    assert!(number > 40 && error.contains("of all pods would take"), "{number}: {error}");
    node.sandboxes.start(pod("plain")).await.unwrap();
}

#[tokio::test]
async fn id_of_the_caller_is_used_once() {
    let node = FakeNode::new();
    let id = "0a".repeat(32);
    let named = |name| SandboxSpec { id: Some(id.clone()), ..pod(name) };
    assert_eq!(node.sandboxes.start(named("web")).await.unwrap(), id);
    let error = node.sandboxes.start(named("other")).await.unwrap_err();
    assert!(matches!(error, SandboxError::Spec(SandboxSpecError::Id(_))), "{error}");
    let sandbox = node.sandboxes.get(&id).unwrap();
    node.sandboxes.stop(&sandbox).await.unwrap();
    node.sandboxes.remove(&sandbox).await.unwrap();
    node.nothing_is_left().await;
}

#[tokio::test]
async fn scratch_disk_is_kept_as_long_as_its_vm_may_have_it() {
    let node = FakeNode::new();
    // A disk has no name: of the open files of this process it is one in that directory.
    let scratch = node.directory.path().join("root/scratch/pod-");
    let open = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with(&*scratch.to_string_lossy())).count()
    };
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    assert!(open() >= 1, "a VMM that closes its descriptor is the last one");
    let sandbox = node.sandboxes.get(&id).unwrap();
    node.sandboxes.stop(&sandbox).await.unwrap();
    for _ in 0..500 {
        if open() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the disk of a pod that was stopped is kept");
}
