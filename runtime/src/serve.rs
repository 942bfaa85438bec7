//! The daemon as a story: open the house, take back what an earlier daemon left, serve, end.

use crate::cgroup;
use crate::config::Config;
use crate::container::Containers;
use crate::cri::Node;
use crate::cri::server::{self, ServerError};
use crate::hypervisor::LocalHypervisor;
use crate::network::{NetworkConfig, NetworkError, Networks};
use crate::sandbox::{Host, SandboxError, Sandboxes};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Why the daemon could not start, or gave up.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The sandboxes.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signal(io::Error),
}

/// Runs the daemon until SIGTERM or SIGINT. Pods run on after it.
///
/// # Errors
/// What kept it from serving.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let config = Arc::new(config);
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    // The socket first: it tells whether another daemon owns the state.
    let listener = server::bind(&config.daemon.socket).await?;
    let (sandboxes, events) = Sandboxes::new(Arc::clone(&config), host(&config)?)?;
    let containers = Containers::new(events);
    sandboxes.restore().await?;
    let node = Arc::new(Node { config, sandboxes, containers });
    tracing::info!(socket = %node.config.daemon.socket.display(), "serving");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; pods run on");
    };
    Ok(server::serve(listener, node, stop).await?)
}

/// What sandboxes are made of on this node.
fn host(config: &Config) -> Result<Host, ServeError> {
    let networks = Networks::new(NetworkConfig {
        conf_dir: config.cni.conf_dir.clone(),
        bin_dirs: config.cni.bin_dirs.clone(),
        state_dir: config.daemon.state_dir.join("network"),
        netns_dir: config.cni.netns_dir.clone(),
        networks: config.cni.networks.clone(),
        plugin_timeout: Duration::from_secs(config.cni.plugin_timeout_s.into()),
    })?;
    Ok(Host {
        hypervisor: Arc::new(LocalHypervisor::default()),
        networks: Arc::new(networks),
        cgroup_root: cgroup::ROOT.into(),
    })
}
