//! The sandboxes of a node without pods, for unit tests of what stands above them.

use super::{Host, PodNetworks, SandboxEvents, Sandboxes};
use crate::config::Config;
use crate::host_users::HostUsers;
use crate::hypervisor::fake::FakeHypervisor;
use crate::network::{NetworkError, Pod, PodNetwork};
use crate::scratch::Scratch;
use crate::undo::Undo;
use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;

/// There are none, and none can be made.
struct NoNetworks;

#[async_trait]
impl PodNetworks for NoNetworks {
    fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn add(&self, _: &Pod, _: &mut Undo) -> Result<PodNetwork, NetworkError> {
        Err(NetworkError::NoAddress("none".into()))
    }

    async fn remove(&self, _: &str) -> Result<(), NetworkError> {
        Ok(())
    }

    fn known(&self) -> Result<Vec<String>, NetworkError> {
        Ok(Vec::new())
    }
}

/// Sandboxes with all their files below `directory`, and what is told of them.
pub fn without_pods(directory: &Path) -> (Arc<Sandboxes>, UnboundedReceiver<SandboxEvents>) {
    let mut config = Config::default();
    config.daemon.state_dir = directory.join("state");
    config.daemon.root_dir = directory.join("root");
    let host = Host {
        hypervisor: FakeHypervisor::new(drop),
        networks: Arc::new(NoNetworks),
        scratch: Arc::new(Scratch::new(directory.join("scratch")).unwrap()),
        users: HostUsers::open(&config.daemon.state_dir, config.vm.pod_uids()).unwrap(),
        cgroup_root: directory.join("cgroup"),
    };
    Sandboxes::new(Arc::new(config), host).unwrap()
}
