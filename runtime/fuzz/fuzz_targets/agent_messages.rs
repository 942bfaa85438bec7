//! Any bytes as each message of an agent: decoded or refused, and what the daemon makes of its numbers and
//! texts is bounded.

#![no_main]

use isopod_protocols::agent::{
    ContainerState, CreateContainerResponse, Event, HelloResponse, StatsResponse, WaitProcessResponse, event,
};
use isopod_runtime::container::Exit;
use isopod_runtime::cpu_rate::CpuRate;
use isopod_runtime::hostile_text;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let _ = CreateContainerResponse::decode(bytes);
    let _ = WaitProcessResponse::decode(bytes);
    if let Ok(hello) = HelloResponse::decode(bytes) {
        for text in [hello.agent_version, hello.kernel_release, hello.boot_id] {
            let shown = hostile_text::message(&text);
            assert!(shown.len() <= 2048 && !shown.contains(char::is_control));
        }
    }
    if let Ok(Event { event: Some(event) }) = Event::decode(bytes) {
        match event {
            event::Event::Snapshot(all) => all.containers.iter().for_each(ended),
            event::Event::Changed(one) => ended(&one),
        }
    }
    if let Ok(stats) = StatsResponse::decode(bytes) {
        let rate = CpuRate::default();
        for container in stats.containers {
            rate.read(container.timestamp_ns, container.cpu_usage_ns);
        }
    }
});

fn ended(container: &ContainerState) {
    if let Some(told) = &container.exit {
        let exit = Exit::told(container.started_at_ns, told);
        assert!(exit.finished_at_ns >= exit.started_at_ns && exit.message.is_empty());
    }
}
