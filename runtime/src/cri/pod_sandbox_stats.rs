//! PodSandboxStats, ListPodSandboxStats and StreamPodSandboxStats: what pods cost the node, as `pod` measures
//! it.

use super::Node;
use super::container_stats;
use super::sandbox_spec::metadata;
use super::selection::has_labels;
use super::stream::{Messages, messages};
use crate::cgroup::Usage;
use crate::pod::PodStats;
use crate::sandbox::{PodUsage, Sandbox, State};
use isopod_protocols::cri::{
    CpuUsage, LinuxPodSandboxStats, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, MemoryUsage,
    NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxStats, PodSandboxStatsRequest,
    PodSandboxStatsResponse, ProcessUsage, StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse,
    UInt64Value,
};
use isopod_protocols::vmm::Stats;
use std::sync::Arc;
use tonic::Status;

pub async fn serve(node: &Node, request: PodSandboxStatsRequest) -> Result<PodSandboxStatsResponse, Status> {
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    let stats = node.pods.stats(&sandbox).await?;
    Ok(PodSandboxStatsResponse { stats: Some(stats_of(node, stats)) })
}

pub async fn serve_list(
    node: &Node,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let wanted = |sandbox: &Arc<Sandbox>| {
        sandbox.state() == State::Ready
            && sandbox.id.starts_with(&filter.id)
            && has_labels(&sandbox.spec.labels, &filter.label_selector)
    };
    let wanted: Vec<_> = node.sandboxes.list().into_iter().filter(wanted).collect();
    let all = node.pods.stats_of_all(&wanted).await;
    Ok(ListPodSandboxStatsResponse { stats: all.into_iter().map(|stats| stats_of(node, stats)).collect() })
}

/// The same as a stream.
pub async fn stream(
    node: &Node,
    request: StreamPodSandboxStatsRequest,
) -> Result<Messages<StreamPodSandboxStatsResponse>, Status> {
    let listed = serve_list(node, ListPodSandboxStatsRequest { filter: request.filter }).await?;
    Ok(messages(listed.stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

fn stats_of(node: &Node, stats: PodStats) -> PodSandboxStats {
    let PodStats { sandbox, usage, cpu_nano_cores, containers } = stats;
    let PodUsage { at_ns: timestamp, cgroup: usage, vm } = usage;
    let mountpoint = node.config.daemon.root_dir.display().to_string();
    let containers = containers.into_iter().map(|usage| container_stats::stats_of(usage, &mountpoint));
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: Some(metadata(&sandbox.spec.name)),
            labels: sandbox.spec.labels.clone().into_iter().collect(),
            annotations: sandbox.spec.annotations.clone().into_iter().collect(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(CpuUsage {
                timestamp,
                usage_core_nano_seconds: value(usage.cpu_ns),
                usage_nano_cores: cpu_nano_cores.and_then(value),
                psi: None,
            }),
            memory: usage.memory_bytes.map(|bytes| memory(timestamp, bytes, &usage)),
            network: vm.map(|card| network(timestamp, &card)),
            process: usage.pids.map(|pids| ProcessUsage { timestamp, process_count: value(pids) }),
            containers: containers.collect(),
            io: None,
        }),
        windows: None,
    }
}

fn memory(timestamp: i64, bytes: u64, usage: &Usage) -> MemoryUsage {
    let working_set = bytes.saturating_sub(usage.inactive_file_bytes);
    MemoryUsage {
        timestamp,
        working_set_bytes: value(working_set),
        available_bytes: usage.memory_limit_bytes.and_then(|limit| value(limit.saturating_sub(working_set))),
        usage_bytes: value(bytes),
        rss_bytes: value(usage.anonymous_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: None,
    }
}

fn network(timestamp: i64, card: &Stats) -> NetworkUsage {
    let interface = NetworkInterfaceUsage {
        name: isopod_protocols::guest::INTERFACE.to_owned(),
        rx_bytes: value(card.net_rx_bytes),
        tx_bytes: value(card.net_tx_bytes),
        // The card has no wire that could lose a frame: queues hold the sender up.
        rx_errors: value(0),
        tx_errors: value(0),
    };
    NetworkUsage { timestamp, default_interface: Some(interface.clone()), interfaces: vec![interface] }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}
