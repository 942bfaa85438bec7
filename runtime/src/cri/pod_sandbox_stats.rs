//! PodSandboxStats, ListPodSandboxStats and StreamPodSandboxStats: what pods cost the node. CPU and memory are those of the pod's
//! cgroup on the host, so they hold VMM, guest kernel and all; the network's are those of the guest's card;
//! those of containers come from the guest. All are asked at the same time and have two seconds: without an
//! answer of the guest the list of containers is empty, without one of the VMM there is no network.

use super::Node;
use super::container_stats;
use super::selection::has_labels;
use super::stream::{Messages, messages};
use crate::cgroup::Usage;
use crate::sandbox::{PodUsage, Sandbox, SandboxError, State};
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
    Ok(PodSandboxStatsResponse { stats: Some(stats(node, &sandbox).await?) })
}

pub async fn serve_list(
    node: &Node,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let wanted = |sandbox: &Arc<Sandbox>| {
        sandbox.state() == State::Ready
            && sandbox.id.starts_with(&filter.id)
            && has_labels(&sandbox.config.labels, &filter.label_selector)
    };
    let wanted: Vec<_> = node.sandboxes.list().into_iter().filter(wanted).collect();
    // All at the same time: a slow guest holds none of the others up.
    let all = futures_util::future::join_all(wanted.iter().map(|sandbox| stats(node, sandbox))).await;
    // One that goes at this moment is left out, and spoils nothing for the others.
    Ok(ListPodSandboxStatsResponse { stats: all.into_iter().flatten().collect() })
}

/// The same as a stream.
pub async fn stream(
    node: &Node,
    request: StreamPodSandboxStatsRequest,
) -> Result<Messages<StreamPodSandboxStatsResponse>, Status> {
    let listed = serve_list(node, ListPodSandboxStatsRequest { filter: request.filter }).await?;
    Ok(messages(listed.stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

async fn stats(node: &Node, sandbox: &Sandbox) -> Result<PodSandboxStats, SandboxError> {
    let containers = container_stats::usage(node, node.containers.of_sandbox(&sandbox.id));
    let (usage, containers) = tokio::join!(sandbox.usage(), containers);
    let PodUsage { at_ns: timestamp, cgroup: usage, vm } = usage?;
    Ok(PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: sandbox.config.metadata.clone(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(CpuUsage {
                timestamp,
                usage_core_nano_seconds: value(usage.cpu_ns),
                usage_nano_cores: sandbox.cpu_rate.read(timestamp, usage.cpu_ns).and_then(value),
                psi: None,
            }),
            memory: usage.memory_bytes.map(|bytes| memory(timestamp, bytes, &usage)),
            network: vm.map(|card| network(timestamp, &card)),
            process: usage.pids.map(|pids| ProcessUsage { timestamp, process_count: value(pids) }),
            containers,
            io: None,
        }),
        windows: None,
    })
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
