//! What pods cost the node. CPU and memory are those of the pod's cgroup on the host, so they hold VMM, guest
//! kernel and all; the network's are those of the guest's card; those of containers come from the guest.
//!
//! All are asked at the same time and have two seconds: without an answer of the guest the list of containers
//! is empty, without one of the VMM there is no network.

use super::Pods;
use crate::container::Container;
use crate::sandbox::{PodUsage, Sandbox, SandboxError};
use isopod_protocols::agent::ContainerStats;
use std::sync::Arc;

/// Figures of a pod and of its containers.
pub struct PodStats {
    /// The pod.
    pub sandbox: Arc<Sandbox>,
    /// Its sandbox's figures.
    pub usage: PodUsage,
    /// CPU time in a second of late, nanoseconds; absent until it has been asked for twice.
    pub cpu_nano_cores: Option<u64>,
    /// Those of its containers that run.
    pub containers: Vec<ContainerUsage>,
}

/// Figures of a container.
pub struct ContainerUsage {
    /// The container.
    pub container: Arc<Container>,
    /// As its agent measured them.
    pub stats: ContainerStats,
    /// CPU time in a second of late, nanoseconds; absent until it has been asked for twice.
    pub cpu_nano_cores: Option<u64>,
}

impl Pods {
    /// Figures of a pod.
    ///
    /// # Errors
    /// Where its sandbox is not Ready, or its cgroup has gone.
    pub async fn stats(&self, sandbox: &Arc<Sandbox>) -> Result<PodStats, SandboxError> {
        let containers = self.container_stats(self.containers.of_sandbox(&sandbox.id));
        let (usage, containers) = tokio::join!(sandbox.usage(), containers);
        let usage = usage?;
        Ok(PodStats {
            sandbox: Arc::clone(sandbox),
            cpu_nano_cores: sandbox.cpu_rate.read(usage.at_ns, usage.cgroup.cpu_ns),
            usage,
            containers,
        })
    }

    /// Figures of those of `sandboxes` that have some. All are asked at the same time: a slow guest holds
    /// none of the others up. One that goes at this moment is left out, and spoils nothing for the others.
    pub async fn stats_of_all(&self, sandboxes: &[Arc<Sandbox>]) -> Vec<PodStats> {
        let all = futures_util::future::join_all(sandboxes.iter().map(|sandbox| self.stats(sandbox))).await;
        all.into_iter().flatten().collect()
    }

    /// Figures of those of `containers` that run.
    pub async fn container_stats(&self, containers: Vec<Arc<Container>>) -> Vec<ContainerUsage> {
        let told = self.containers.usage(containers).await;
        told.into_iter().map(|(container, stats)| container_usage(container, stats)).collect()
    }
}

fn container_usage(container: Arc<Container>, stats: ContainerStats) -> ContainerUsage {
    let cpu_nano_cores = container.cpu_rate.read(stats.timestamp_ns, stats.cpu_usage_ns);
    ContainerUsage { container, stats, cpu_nano_cores }
}
