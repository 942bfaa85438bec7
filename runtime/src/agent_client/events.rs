//! What an agent tells of its containers (`Watch`), checked: first a snapshot, then changes, neither larger
//! nor more frequent than those of an honest agent. A stream that breaks a rule is at its end.
//!
//! Used by `sandbox`, which holds one stream per pod. It must not know what the states mean.

use super::{AgentClient, AgentError};
use crate::id::is_valid;
use isopod_protocols::agent::{ContainerState, Event, event};
use isopod_protocols::guest::MAX_CONTAINERS;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

/// The call, for errors.
const WATCH: &str = "Watch";

/// Most events taken of one agent in [`SECOND`]; what comes faster waits in the guest. Each container goes
/// through three changes, so that an honest agent with a full pod does not wait.
const EVENTS_PER_SECOND: usize = 4 * MAX_CONTAINERS;

const SECOND: Duration = Duration::from_secs(1);

/// What an agent tells of its containers. Every id in it could be one of ours; whether it names a container
/// of that pod is for the reader to check.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// The states of all of them, at most [`MAX_CONTAINERS`].
    Snapshot(Vec<ContainerState>),
    /// The new state of one.
    Changed(ContainerState),
}

/// The open stream of one agent's events.
pub struct AgentEvents {
    agent: AgentClient,
    stream: Streaming<Event>,
    has_begun: bool,
    pace: Pace,
}

impl AgentEvents {
    pub(super) fn new(agent: AgentClient, stream: Streaming<Event>) -> Self {
        Self { agent, stream, has_begun: false, pace: Pace::new() }
    }

    /// Waits for the next event; `None` where the agent ended the stream.
    ///
    /// # Errors
    /// Where the stream broke or the agent broke a rule: then it is to be dropped.
    pub async fn next(&mut self) -> Result<Option<AgentEvent>, AgentError> {
        self.pace.wait().await;
        let told = self.stream.message().await.map_err(|status| self.agent.broken(WATCH, &status))?;
        let Some(event) = told else { return Ok(None) };
        let event = check(event, self.has_begun).map_err(|problem| self.agent.malformed(WATCH, problem))?;
        self.has_begun = true;
        Ok(Some(event))
    }
}

/// Answers an event that follows the rules, or else what is wrong with it; `has_begun` where it is not the
/// stream's first.
pub fn check(event: Event, has_begun: bool) -> Result<AgentEvent, String> {
    match (event.event, has_begun) {
        (Some(event::Event::Snapshot(snapshot)), false) => {
            let count = snapshot.containers.len();
            if count > MAX_CONTAINERS {
                return Err(format!("a snapshot of {count} containers, more than {MAX_CONTAINERS}"));
            }
            if !snapshot.containers.iter().all(|state| is_valid(&state.container_id)) {
                return Err("an invalid container id".to_owned());
            }
            Ok(AgentEvent::Snapshot(snapshot.containers))
        }
        (Some(event::Event::Snapshot(_)), true) => Err("a second snapshot in one stream".to_owned()),
        (Some(event::Event::Changed(_)), false) => Err("a change before the snapshot".to_owned()),
        (Some(event::Event::Changed(state)), true) if is_valid(&state.container_id) => {
            Ok(AgentEvent::Changed(state))
        }
        (Some(event::Event::Changed(_)), true) => Err("an invalid container id".to_owned()),
        (None, _) => Err("an event that holds nothing".to_owned()),
    }
}

/// Counts what has been taken in the second that runs.
struct Pace {
    since: Instant,
    taken: usize,
}

impl Pace {
    fn new() -> Self {
        Self { since: Instant::now(), taken: 0 }
    }

    /// Waits until one more may be taken, and counts it.
    async fn wait(&mut self) {
        if self.taken >= EVENTS_PER_SECOND {
            sleep_until(self.since + SECOND).await;
        }
        if self.since.elapsed() >= SECOND {
            *self = Self::new();
        }
        self.taken += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_client::MAX_ANSWER;
    use isopod_protocols::agent::{
        ContainerStats, CreateContainerResponse, ProcessExit, ResolvedUser, Snapshot,
    };
    use isopod_protocols::agent::{State, StatsResponse};
    use isopod_protocols::guest::MAX_GROUPS;
    use proptest::prelude::*;
    use prost::Message;

    fn state(number: usize) -> ContainerState {
        let exit = ProcessExit { code: -1, exited_at_ns: i64::MAX, oom_killed: true };
        ContainerState {
            container_id: format!("{number:032x}"),
            state: State::Exited.into(),
            started_at_ns: i64::MAX,
            exit: Some(exit),
        }
    }

    fn snapshot(containers: Vec<ContainerState>) -> Event {
        Event { event: Some(event::Event::Snapshot(Snapshot { containers })) }
    }

    fn changed(state: ContainerState) -> Event {
        Event { event: Some(event::Event::Changed(state)) }
    }

    fn full() -> Vec<ContainerState> {
        (0..MAX_CONTAINERS).map(state).collect()
    }

    #[test]
    fn longest_honest_answers_fit() {
        assert_eq!(check(snapshot(full()), false), Ok(AgentEvent::Snapshot(full())));
        let stats = ContainerStats {
            container_id: state(0).container_id,
            timestamp_ns: i64::MAX,
            cpu_usage_ns: u64::MAX,
            memory_usage_bytes: u64::MAX,
            memory_working_set_bytes: u64::MAX,
            memory_rss_bytes: u64::MAX,
            memory_limit_bytes: u64::MAX,
            page_faults: u64::MAX,
            major_page_faults: u64::MAX,
            pids: u64::MAX,
            writable_bytes: u64::MAX,
            writable_inodes: u64::MAX,
            swap_usage_bytes: u64::MAX,
        };
        let stats = StatsResponse {
            containers: vec![stats; MAX_CONTAINERS],
            guest_cpu_usage_ns: u64::MAX,
            guest_memory_total_bytes: u64::MAX,
            guest_memory_available_bytes: u64::MAX,
        };
        let groups = vec![u32::MAX; MAX_GROUPS];
        let user = ResolvedUser { uid: u32::MAX, gid: u32::MAX, supplemental_groups: groups };
        let created = CreateContainerResponse { user: Some(user) };
        let longest = [snapshot(full()).encoded_len(), stats.encoded_len(), created.encoded_len()];
        assert!(longest.iter().all(|length| *length <= MAX_ANSWER), "{longest:?}");
    }

    #[test]
    fn snapshot_of_too_many_containers_is_refused() {
        let many = vec![ContainerState::default(); MAX_CONTAINERS + 1];
        assert_eq!(check(snapshot(many), false).unwrap_err(), "a snapshot of 257 containers, more than 256");
    }

    #[test]
    fn snapshot_comes_first_and_once() {
        assert!(check(snapshot(Vec::new()), true).is_err());
        assert!(check(changed(state(1)), false).is_err());
        assert_eq!(check(changed(state(1)), true), Ok(AgentEvent::Changed(state(1))));
        assert!(check(Event { event: None }, true).is_err());
    }

    #[test]
    fn text_that_is_no_id_is_refused() {
        let strange = ContainerState { container_id: "x".repeat(60_000), ..state(1) };
        assert!(check(changed(strange.clone()), true).is_err());
        assert!(check(snapshot(vec![state(1), strange]), false).is_err());
    }

    #[tokio::test]
    async fn events_that_come_too_fast_wait() {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        for _ in 0..EVENTS_PER_SECOND {
            pace.wait().await;
        }
        assert!(begun.elapsed() < SECOND, "an honest agent does not wait");
        pace.wait().await;
        assert!(begun.elapsed() >= SECOND);
    }

    /// Whether what came through is what the daemon can hold.
    fn is_bounded(checked: &Result<AgentEvent, String>) -> bool {
        let all = match checked {
            Ok(AgentEvent::Snapshot(all)) => all.as_slice(),
            Ok(AgentEvent::Changed(one)) => std::slice::from_ref(one),
            Err(_) => &[],
        };
        all.len() <= MAX_CONTAINERS && all.iter().all(|state| is_valid(&state.container_id))
    }

    proptest! {
        #[test]
        fn any_bytes_are_bounded_or_refused(bytes: Vec<u8>, has_begun: bool) {
            if let Ok(event) = Event::decode(bytes.as_slice()) {
                prop_assert!(is_bounded(&check(event, has_begun)));
            }
        }

        #[test]
        fn any_ids_are_bounded_or_refused(ids in prop::collection::vec("[0-9a-zA-Z_./-]{0,80}", 0..400), one: bool) {
            let mut states = ids.into_iter().map(|container_id| ContainerState { container_id, ..state(0) });
            let event = match one {
                true => changed(states.next().unwrap_or_default()),
                false => snapshot(states.collect()),
            };
            prop_assert!(is_bounded(&check(event, one)));
        }
    }
}
