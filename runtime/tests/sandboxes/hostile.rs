//! Agents that attack the daemon by what they answer. Its memory and its tasks stay as they were, and what
//! the agents of other pods tell arrives in time.

use crate::fakes::{FakeNode, Wishes, container, image, pod};
use crate::hostile_agent::Attack;
use isopod_protocols::agent::{self, ContainerState, ProcessExit, StatsRequest};
use isopod_runtime::container::{Container, Containers, State};
use std::env;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

/// Names the attack for the process that goes through it.
const ATTACK: &str = "ISOPOD_TEST_ATTACK";

/// The attacks that go on without end.
const FLOODS: [Attack; 4] =
    [Attack::LongAnswers, Attack::ManyEntries, Attack::Strangers, Attack::FailedStarts];

/// Time that a flood goes on.
const FLOOD: Duration = Duration::from_secs(3);

/// Most that the process may grow in it, KiB: what the test's own end of the connection needs for messages of
/// 4 MiB, and less than half of one such message once the daemon has decoded it.
const GROWTH_KIB: u64 = 48 * 1024;

/// Most tasks that one more pod may come with.
const TASKS: usize = 40;

/// Time in which an exit must be known, flood or not.
const IN_TIME: Duration = Duration::from_secs(2);

#[test]
fn endless_long_snapshots_take_no_memory_and_hold_no_other_pod_up() {
    in_a_process_of_its_own(Attack::LongAnswers);
}

#[test]
fn endless_tiny_entries_take_no_memory_and_hold_no_other_pod_up() {
    in_a_process_of_its_own(Attack::ManyEntries);
}

#[test]
fn endless_unknown_containers_make_no_tasks_and_hold_no_other_pod_up() {
    in_a_process_of_its_own(Attack::Strangers);
}

#[test]
fn endless_failed_starts_make_no_tasks_and_hold_no_other_pod_up() {
    in_a_process_of_its_own(Attack::FailedStarts);
}

/// The memory of other tests must not count.
fn in_a_process_of_its_own(attack: Attack) {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "hostile::flood_beside_another_pod", "--ignored", "--nocapture"])
        .env(ATTACK, format!("{attack:?}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("1 passed"), "the test in the child did not run: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests above, in a process of its own"]
async fn flood_beside_another_pod() {
    let name = env::var(ATTACK).expect("the parent names the attack");
    let attack = FLOODS.into_iter().find(|attack| format!("{attack:?}") == name).unwrap();
    let node = FakeNode::new();
    Wishes::set(&node.wishes.containers);
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers::open(directory.path(), Arc::clone(&node.sandboxes), node.events).unwrap();
    let (sandboxes, wishes) = (node.sandboxes, node.wishes);

    let victim = sandboxes.get(&sandboxes.start(pod("victim"), "").await.unwrap()).unwrap();
    let victim = containers.create(&victim, container("c"), image()).await.unwrap();
    let before = Daemon::now();
    wishes.attack(attack);
    let hostile = sandboxes.get(&sandboxes.start(pod("hostile"), "").await.unwrap()).unwrap();
    if attack == Attack::FailedStarts {
        let failing = containers.create(&hostile, container("c"), image()).await.unwrap();
        let (containers, hostile) = (Arc::clone(&containers), Arc::clone(&hostile));
        tokio::spawn(async move { containers.start(&hostile, &failing).await });
    }
    let begun = Instant::now();
    before.stays_flat(begun + FLOOD / 2).await;
    wishes.tell(&told(&victim, agent::State::Running));
    wishes.tell(&told(&victim, agent::State::Exited));
    let exited = async {
        while !matches!(victim.state(), State::Exited(_)) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(IN_TIME, exited).await.expect("the exit of another pod's container is held up");
    before.stays_flat(begun + FLOOD).await;
}

fn told(container: &Container, state: agent::State) -> ContainerState {
    let exit = (state == agent::State::Exited).then(ProcessExit::default);
    ContainerState { container_id: container.id.clone(), state: state.into(), started_at_ns: 1, exit }
}

/// What this process takes, daemon and guests.
struct Daemon {
    memory_kib: u64,
    tasks: usize,
}

impl Daemon {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let memory_kib = field.trim().trim_end_matches(" kB").parse().unwrap();
        Self { memory_kib, tasks: Handle::current().metrics().num_alive_tasks() }
    }

    /// Looks often, so that a process that grows without end is ended by the first look that sees it.
    async fn stays_flat(&self, until: Instant) {
        while Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
            let Self { memory_kib, tasks } = Self::now();
            let grown = memory_kib.saturating_sub(self.memory_kib);
            assert!(grown <= GROWTH_KIB, "the process has grown by {grown} KiB");
            assert!(tasks <= self.tasks + TASKS, "{} tasks have become {tasks}", self.tasks);
        }
    }
}

#[tokio::test]
async fn figures_without_end_are_refused() {
    for (attack, reason) in [
        (Attack::LongAnswers, "message length too large"),
        (
            Attack::ManyEntries,
            "with figures of 30000 containers, more than 256: its guest is broken or hostile",
        ),
    ] {
        let node = FakeNode::new();
        node.wishes.attack(attack);
        let id = node.sandboxes.start(pod("hostile"), "").await.unwrap();
        let agent = node.sandboxes.get(&id).unwrap().machine().unwrap().agent;
        let error = agent.stats(StatsRequest::default(), Duration::from_secs(5)).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn groups_beyond_the_limit_are_refused_and_nothing_is_recorded() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.containers);
    node.wishes.attack(Attack::ManyGroups);
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers::open(directory.path(), Arc::clone(&node.sandboxes), node.events).unwrap();
    let id = node.sandboxes.start(pod("hostile"), "").await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    // Twice: the name is free again.
    for _ in 0..2 {
        let error = containers.create(&sandbox, container("c"), image()).await.err().unwrap();
        let expected = "answered CreateContainer with 5000 supplemental groups, more than 4096";
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(containers.list().is_empty());
    assert_eq!(fs::read_dir(directory.path().join("containers")).unwrap().count(), 0);
}
