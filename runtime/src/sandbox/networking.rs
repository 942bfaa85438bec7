//! Who gives pods their network: CNI, or a fake in tests that have no root.

use crate::config::Config;
use crate::network::{NetworkConfig, NetworkError, Networks, Pod, PodNetwork};
use crate::undo::Undo;
use async_trait::async_trait;
use std::time::Duration;

/// The networks' part of the configuration.
pub fn network_config(config: &Config) -> NetworkConfig {
    NetworkConfig {
        conf_dir: config.cni.conf_dir.clone(),
        bin_dirs: config.cni.bin_dirs.clone(),
        state_dir: config.daemon.state_dir.join("network"),
        netns_dir: config.cni.netns_dir.clone(),
        networks: config.cni.networks.clone(),
        plugin_timeout: Duration::from_secs(config.cni.plugin_timeout_s.into()),
    }
}

/// Sets pods' networks up and tears them down.
#[async_trait]
pub trait PodNetworks: Send + Sync {
    /// Whether a pod could get a network now.
    ///
    /// # Errors
    /// What is missing.
    fn ready(&self) -> Result<(), NetworkError>;

    /// Sets up a pod's network; each step pushes its release.
    ///
    /// # Errors
    /// What was taken is on `undo`.
    async fn add(&self, pod: &Pod, undo: &mut Undo) -> Result<PodNetwork, NetworkError>;

    /// Tears a pod's network down. One that is gone is no error.
    ///
    /// # Errors
    /// What stayed; calling again tries again.
    async fn remove(&self, sandbox_id: &str) -> Result<(), NetworkError>;

    /// Ids of all sandboxes that have a network.
    ///
    /// # Errors
    /// Where the records cannot be read.
    fn known(&self) -> Result<Vec<String>, NetworkError>;
}

#[async_trait]
impl PodNetworks for Networks {
    fn ready(&self) -> Result<(), NetworkError> {
        self.ready()
    }

    async fn add(&self, pod: &Pod, undo: &mut Undo) -> Result<PodNetwork, NetworkError> {
        self.add(pod, undo).await
    }

    async fn remove(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        self.remove(sandbox_id).await
    }

    fn known(&self) -> Result<Vec<String>, NetworkError> {
        self.known()
    }
}
