//! The daemon as a story: open the house, take back what an earlier daemon left, serve, end.

use crate::config::Config;
use crate::container::Containers;
use crate::cri::Node;
use crate::cri::server::{self, ServerError};
use crate::hypervisor::Hypervisor;
use crate::sandbox::{SandboxError, Sandboxes};
use std::io;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Why the daemon could not start, or gave up.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The sandboxes.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
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
pub async fn serve(config: Config, hypervisor: Arc<dyn Hypervisor>) -> Result<(), ServeError> {
    let config = Arc::new(config);
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    // The socket first: it tells whether another daemon owns the state.
    let listener = server::bind(&config.daemon.socket).await?;
    let (sandboxes, events) = Sandboxes::new(Arc::clone(&config), hypervisor)?;
    let containers = Containers::new(events);
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
