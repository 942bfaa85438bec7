//! Agents that attack the daemon by what they answer. Its memory and its tasks stay as they were, and what
//! the agents of other pods tell arrives in time.

use crate::fakes::{FakeNode, Wishes, container, pod};
use crate::hostile_agent::Attack;
use crate::hostile_frames::{self, Flood};
use isopod_protocols::agent::{self, ContainerState, ProcessExit, StatsRequest};
use isopod_runtime::container::{Container, ContainerError, Containers, State};
use isopod_runtime::resources::Resources;
use isopod_runtime::sandbox::{Sandbox, Sandboxes};
use std::env;
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

/// Names the attack for the process that goes through it.
const ATTACK: &str = "ISOPOD_TEST_ATTACK";

/// The tests that go through one.
const BY_ANSWERS: &str = "hostile::flood_beside_another_pod";
const BY_FRAMES: &str = "hostile::frames_beside_another_pod";

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
    in_a_process_of_its_own(BY_ANSWERS, Attack::LongAnswers);
}

#[test]
fn endless_tiny_entries_take_no_memory_and_hold_no_other_pod_up() {
    in_a_process_of_its_own(BY_ANSWERS, Attack::ManyEntries);
}

#[test]
fn endless_unknown_containers_make_no_tasks_and_hold_no_other_pod_up() {
    in_a_process_of_its_own(BY_ANSWERS, Attack::Strangers);
}

#[test]
fn endless_failed_starts_make_no_tasks_and_hold_no_other_pod_up() {
    in_a_process_of_its_own(BY_ANSWERS, Attack::FailedStarts);
}

#[test]
fn endless_frames_without_data_take_no_memory_and_hold_no_other_pod_up() {
    for flood in Flood::ALL {
        in_a_process_of_its_own(BY_FRAMES, flood);
    }
}

/// The memory of other tests must not count.
fn in_a_process_of_its_own(test: &str, attack: impl Debug) {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
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
    let node = OneContainer::begin("victim", None).await;
    let OneContainer { wishes, sandboxes, containers, made: victim, .. } = &node;
    let before = Daemon::now();
    wishes.attack(attack);
    let hostile = sandboxes.get(&sandboxes.start(pod("hostile")).await.unwrap()).unwrap();
    if attack == Attack::FailedStarts {
        let failing = containers.create(&hostile, container("c")).await.unwrap();
        let (containers, hostile) = (Arc::clone(containers), Arc::clone(&hostile));
        tokio::spawn(async move { containers.start(&hostile, &failing).await });
    }
    before.stays_flat_and_hears_of(wishes, victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests above, in a process of its own"]
async fn frames_beside_another_pod() {
    let name = env::var(ATTACK).expect("the parent names the attack");
    let flood = Flood::ALL.into_iter().find(|flood| format!("{flood:?}") == name).unwrap();
    let node = OneContainer::begin("victim", None).await;

    let before = Daemon::now();
    let begun = Instant::now();
    let (agent, sent) = hostile_frames::agent(flood).await;
    let asked = tokio::spawn(async move { agent.stats(StatsRequest::default(), 2 * FLOOD).await });
    before.stays_flat_and_hears_of(&node.wishes, &node.made).await;
    let (sent, seconds) = (sent.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    let most = hostile_frames::RATE * seconds + hostile_frames::AT_ONCE;
    assert!(sent as f64 <= most, "{sent} bytes of frames were read in {seconds} s");
    assert!(sent > 0, "the flood did not begin");
    asked.abort();
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

    /// Stays flat while a flood goes on, in the middle of which the exit of a container of another pod is
    /// told.
    async fn stays_flat_and_hears_of(&self, wishes: &Wishes, victim: &Container) {
        let begun = Instant::now();
        self.stays_flat(begun + FLOOD / 2).await;
        wishes.tell(&told(victim, agent::State::Running));
        wishes.tell(&told(victim, agent::State::Exited));
        let exited = async {
            while !matches!(victim.state(), State::Exited(_)) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(IN_TIME, exited).await.expect("the exit of another pod's container is held up");
        self.stays_flat(begun + FLOOD).await;
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
        (Attack::ManyAnswers, "its answer is longer than 65536 bytes"),
    ] {
        let node = FakeNode::new();
        node.wishes.attack(attack);
        let id = node.sandboxes.start(pod("hostile")).await.unwrap();
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
    let id = node.sandboxes.start(pod("hostile")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    // Twice: the name is free again.
    for _ in 0..2 {
        let error = containers.create(&sandbox, container("c")).await.err().unwrap();
        let expected = "answered CreateContainer with 5000 supplemental groups, more than 4096";
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(containers.list().is_empty());
    assert_eq!(fs::read_dir(directory.path().join("containers")).unwrap().count(), 0);
}

/// A node with one pod that has one container.
struct OneContainer {
    wishes: Arc<Wishes>,
    sandboxes: Arc<Sandboxes>,
    sandbox: Arc<Sandbox>,
    containers: Arc<Containers>,
    made: Arc<Container>,
    /// Where the containers' files are.
    directory: TempDir,
    _node: Arc<TempDir>,
}

impl OneContainer {
    async fn begin(pod_name: &str, attack: Option<Attack>) -> Self {
        let FakeNode { sandboxes, events, wishes, directory: _node, .. } = FakeNode::new();
        attack.into_iter().for_each(|attack| wishes.attack(attack));
        Wishes::set(&wishes.containers);
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers::open(directory.path(), Arc::clone(&sandboxes), events).unwrap();
        let sandbox = sandboxes.get(&sandboxes.start(pod(pod_name)).await.unwrap()).unwrap();
        let made = containers.create(&sandbox, container("c")).await.unwrap();
        Self { wishes, sandboxes, sandbox, containers, made, directory, _node }
    }
}

/// Time in which what is told of a container has arrived.
const ARRIVED: Duration = Duration::from_millis(300);

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[tokio::test]
async fn event_during_a_removal_starts_no_stream() {
    let node = OneContainer::begin("hostile", None).await;
    let OneContainer { wishes, sandbox, containers, made, directory, .. } = &node;
    Wishes::set(&wishes.slow_removal);
    {
        let mut removal = pin!(containers.remove(Some(sandbox), made));
        tokio::select! {
            _ = &mut removal => panic!("the agent is not to answer"),
            () = wishes.removing.notified() => {}
        }
        wishes.tell(&told(made, agent::State::Running));
        assert!(timeout(ARRIVED, &mut removal).await.is_err());
        assert!(made.is_running(), "the event has not arrived");
        // The client leaves: the container is there still, and so it cannot be started.
    }
    assert_eq!(wishes.streams.load(Ordering::SeqCst), 0, "a stream has begun during the removal");
    Wishes::clear(&wishes.slow_removal);
    wishes.tell(&told(made, agent::State::Exited));
    sleep(ARRIVED).await;
    containers.remove(Some(sandbox), made).await.unwrap();
    assert_eq!(wishes.streams.load(Ordering::SeqCst), 0);
    assert_eq!(count(&directory.path().join("streams")), 0, "positions of streams are left");
}

#[tokio::test]
async fn container_whose_removal_has_begun_is_not_started() {
    let node = OneContainer::begin("hostile", None).await;
    let OneContainer { wishes, sandbox, containers, made, .. } = &node;
    Wishes::set(&wishes.slow_removal);
    assert!(timeout(ARRIVED, containers.remove(Some(sandbox), made)).await.is_err());
    let error = containers.start(sandbox, made).await.unwrap_err();
    assert!(matches!(error, ContainerError::BeingRemoved(_)), "{error}");
    Wishes::clear(&wishes.slow_removal);
    containers.remove(Some(sandbox), made).await.unwrap();
}

#[tokio::test]
async fn limits_updated_after_a_removal_leave_no_record() {
    let node = OneContainer::begin("hostile", None).await;
    let OneContainer { sandbox, containers, made, directory, .. } = &node;
    containers.update(sandbox, made, &Resources::default()).await.unwrap();
    containers.remove(Some(sandbox), made).await.unwrap();
    let error = containers.update(sandbox, made, &Resources::default()).await.unwrap_err();
    assert!(matches!(error, ContainerError::NotFound(_)), "{error}");
    assert_eq!(count(&directory.path().join("containers")), 0);
}

#[tokio::test]
async fn execs_that_an_agent_never_ends_are_refused_after_a_few() {
    let node = OneContainer::begin("hostile", Some(Attack::SilentExecs)).await;
    let OneContainer { sandbox, containers, made, .. } = &node;
    containers.start(sandbox, made).await.unwrap();
    let before = Daemon::now();
    let mut refused = 0;
    for _ in 0..100 {
        let exec = containers.exec_sync(sandbox, made, vec!["sh".into()], None);
        match timeout(Duration::from_millis(20), exec).await {
            Err(_) => assert_eq!(refused, 0, "an exec is let begin though others are not ended"),
            Ok(outcome) => {
                let error = outcome.unwrap_err();
                assert!(matches!(error, ContainerError::TooManyExecs { .. }), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 90, "{refused} execs were refused");
    let tasks = Daemon::now().tasks;
    assert!(tasks <= before.tasks + TASKS, "{} tasks have become {tasks}", before.tasks);
}
