//! Any bytes as each message of an agent: decoded or refused, and what the daemon makes of its lists, numbers
//! and texts is bounded.

#![no_main]

use isopod_protocols::agent::{
    ContainerState, CreateContainerResponse, Event, HelloResponse, StartContainerResponse, StartExecResponse,
    StatsResponse, WaitProcessResponse,
};
use isopod_protocols::guest::{MAX_CONTAINERS, MAX_GROUPS};
use isopod_runtime::agent_client::{AgentEvent, check_created, check_event, check_figures};
use isopod_runtime::container::{Exit, State, User};
use isopod_runtime::cpu_rate::CpuRate;
use isopod_runtime::hostile_text;
use isopod_runtime::id::is_valid;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    created(bytes);
    figures(bytes);
    for has_begun in [false, true] {
        told(bytes, has_begun);
    }
    let _ = StartContainerResponse::decode(bytes);
    let _ = StartExecResponse::decode(bytes);
    if let Ok(ended) = WaitProcessResponse::decode(bytes) {
        exited(0, &ended.exit.unwrap_or_default());
    }
    if let Ok(hello) = HelloResponse::decode(bytes) {
        for text in [hello.agent_version, hello.kernel_release, hello.boot_id] {
            let shown = hostile_text::message(&text);
            assert!(shown.len() <= 2048 && !shown.contains(char::is_control));
        }
    }
});

/// What goes into a container's record.
fn created(bytes: &[u8]) {
    let Ok(made) = CreateContainerResponse::decode(bytes) else { return };
    match check_created(made) {
        Ok(made) => {
            let user = User::from(made.user.unwrap_or_default());
            assert!(user.supplemental_groups.len() <= MAX_GROUPS);
        }
        Err(problem) => assert!(problem.len() < 200),
    }
}

fn figures(bytes: &[u8]) {
    let Ok(stats) = StatsResponse::decode(bytes) else { return };
    match check_figures(stats) {
        Ok(stats) => {
            assert!(stats.containers.len() <= MAX_CONTAINERS);
            let rate = CpuRate::default();
            for container in stats.containers {
                rate.read(container.timestamp_ns, container.cpu_usage_ns);
            }
        }
        Err(problem) => assert!(problem.len() < 200),
    }
}

/// An event, as the first of its stream or a later one.
fn told(bytes: &[u8], has_begun: bool) {
    let Ok(event) = Event::decode(bytes) else { return };
    match check_event(event, has_begun) {
        Ok(AgentEvent::Snapshot(all)) => {
            assert!(!has_begun && all.len() <= MAX_CONTAINERS);
            all.iter().for_each(state);
        }
        Ok(AgentEvent::Changed(one)) => {
            assert!(has_begun);
            state(&one);
        }
        Err(problem) => assert!(problem.len() < 200),
    }
}

fn state(container: &ContainerState) {
    assert!(is_valid(&container.container_id));
    if let Some(told) = &container.exit {
        exited(container.started_at_ns, told);
    }
}

/// What goes into the record of a container that has ended.
fn exited(started_at_ns: i64, told: &isopod_protocols::agent::ProcessExit) {
    let exit = Exit::told(started_at_ns, told);
    assert!(exit.finished_at_ns >= exit.started_at_ns && exit.message.is_empty());
    let kept = serde_json::to_vec(&State::Exited(exit.clone())).expect("a state can be written");
    assert_eq!(serde_json::from_slice::<State>(&kept).expect("and read"), State::Exited(exit));
}
