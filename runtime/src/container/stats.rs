//! What containers use, as their agents measure it. A guest that does not answer soon is left out: one slow pod must not
//! hold up the list of all.

use super::{Container, Containers};
use isopod_protocols::agent::{ContainerStats, StatsRequest};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Time an agent has to answer.
const LIMIT: Duration = Duration::from_secs(2);

impl Containers {
    /// Usage of those of `containers` that run, each guest asked once, all at the same time.
    pub async fn usage(&self, containers: Vec<Arc<Container>>) -> Vec<(Arc<Container>, ContainerStats)> {
        let mut by_pod: BTreeMap<String, Vec<Arc<Container>>> = BTreeMap::new();
        for container in containers.into_iter().filter(|c| c.is_running()) {
            by_pod.entry(container.sandbox_id()).or_default().push(container);
        }
        let asked = by_pod.into_iter().map(|(pod, containers)| self.of_pod(pod, containers));
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn of_pod(
        &self,
        pod: String,
        containers: Vec<Arc<Container>>,
    ) -> Vec<(Arc<Container>, ContainerStats)> {
        let container_ids = containers.iter().map(|c| c.id.clone()).collect();
        let answer = async {
            let machine = self.sandboxes.get(&pod)?.machine()?;
            Ok::<_, super::ContainerError>(machine.agent.stats(StatsRequest { container_ids }, LIMIT).await?)
        };
        let told = match answer.await {
            Ok(answer) => answer.containers,
            Err(error) => {
                tracing::warn!(sandbox = pod, %error, "usage of its containers is left out");
                return Vec::new();
            }
        };
        let find = |container: Arc<Container>| {
            let stats = told.iter().find(|stats| stats.container_id == container.id)?.clone();
            Some((container, stats))
        };
        containers.into_iter().filter_map(find).collect()
    }
}
