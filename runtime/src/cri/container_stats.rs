//! ContainerStats, ListContainerStats and StreamContainerStats: what runs, as the guests measure it.

use super::Node;
use super::list_containers::metadata;
use super::selection::has_labels;
use super::stream::{Messages, messages};
use crate::container::Container;
use crate::pod::ContainerUsage;
use isopod_protocols::cri::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatsResponse,
    CpuUsage, FilesystemIdentifier, FilesystemUsage, ListContainerStatsRequest, ListContainerStatsResponse,
    MemoryUsage, StreamContainerStatsRequest, StreamContainerStatsResponse, SwapUsage, UInt64Value,
};
use std::sync::Arc;
use tonic::Status;

pub async fn serve(node: &Node, request: ContainerStatsRequest) -> Result<ContainerStatsResponse, Status> {
    let container = node.containers.get(&request.container_id)?;
    let stats = usage(node, vec![container]).await.pop();
    let reason = "container does not run, or its guest does not answer";
    let stats = stats.ok_or_else(|| Status::failed_precondition(reason))?;
    Ok(ContainerStatsResponse { stats: Some(stats) })
}

pub async fn list(
    node: &Node,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let wanted = node.containers.list().into_iter().filter(|c| passes(c, &filter)).collect();
    Ok(ListContainerStatsResponse { stats: usage(node, wanted).await })
}

/// The same as a stream.
pub async fn stream(
    node: &Node,
    request: StreamContainerStatsRequest,
) -> Result<Messages<StreamContainerStatsResponse>, Status> {
    let listed = list(node, ListContainerStatsRequest { filter: request.filter }).await?;
    Ok(messages(listed.stats, |container_stats| StreamContainerStatsResponse { container_stats }))
}

fn passes(container: &Container, filter: &ContainerStatsFilter) -> bool {
    container.id.starts_with(&filter.id)
        && container.sandbox_id().starts_with(&filter.pod_sandbox_id)
        && has_labels(&container.description().labels, &filter.label_selector)
}

/// Figures of those of `containers` that run.
async fn usage(node: &Node, containers: Vec<Arc<Container>>) -> Vec<ContainerStats> {
    let mountpoint = node.config.daemon.root_dir.display().to_string();
    let told = node.pods.container_stats(containers).await;
    told.into_iter().map(|usage| stats_of(usage, &mountpoint)).collect()
}

/// A container's figures in the CRI's words.
pub fn stats_of(usage: ContainerUsage, mountpoint: &str) -> ContainerStats {
    let ContainerUsage { container, stats: told, cpu_nano_cores } = usage;
    let description = container.description();
    let value = |value| Some(UInt64Value { value });
    let timestamp = told.timestamp_ns;
    let limit = told.memory_limit_bytes;
    let available = (limit > 0).then(|| limit.saturating_sub(told.memory_working_set_bytes));
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: container.id.clone(),
            metadata: Some(metadata(&description)),
            labels: description.labels.into_iter().collect(),
            annotations: description.annotations.into_iter().collect(),
        }),
        cpu: Some(CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(told.cpu_usage_ns),
            usage_nano_cores: cpu_nano_cores.and_then(value),
            psi: None,
        }),
        memory: Some(MemoryUsage {
            timestamp,
            working_set_bytes: value(told.memory_working_set_bytes),
            available_bytes: available.and_then(value),
            usage_bytes: value(told.memory_usage_bytes),
            rss_bytes: value(told.memory_rss_bytes),
            page_faults: value(told.page_faults),
            major_page_faults: value(told.major_page_faults),
            psi: None,
        }),
        writable_layer: Some(FilesystemUsage {
            timestamp,
            fs_id: Some(FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
            used_bytes: value(told.writable_bytes),
            inodes_used: value(told.writable_inodes),
        }),
        swap: Some(SwapUsage {
            timestamp,
            swap_usage_bytes: value(told.swap_usage_bytes),
            swap_available_bytes: None,
        }),
        io: None,
    }
}
