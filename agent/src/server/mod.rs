//! Where the host reaches the agent: one port for calls, one for streams, and the ready signal.
//!
//! | module | |
//! |---|---|
//! | [`calls`] | the gRPC service: each call is handed to the module whose business it is |
//! | [`streams`] | connections of the stdio port |
//! | [`watch`] | the stream that `Watch` answers with |
//! | [`status`] | errors as gRPC codes |
//!
//! Called by `init`. Nothing below knows of gRPC or of the two ports.

mod calls;
mod status;
pub mod streams;
pub mod watch;

use crate::reaper;
use crate::sandbox::Sandbox;
use calls::Service;
use futures_util::TryStreamExt;
use futures_util::future::ready;
use isopod_protocols::agent::agent_server::AgentServer;
use isopod_protocols::vsock::{AGENT_PORT, HOST_CID, READY_PORT, STDIO_PORT};
use std::sync::Arc;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// Largest request, in bytes: an OCI spec of a pod with many mounts is a few hundred KiB.
const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// Listens on both guest ports, tells the host, and serves until the listener fails.
pub async fn serve(sandbox: Arc<Sandbox>) -> Result<(), ServeError> {
    let calls = listen(AGENT_PORT)?;
    let streams = listen(STDIO_PORT)?;
    reaper::start(sandbox.containers.reaper.clone())?;
    tokio::spawn(streams::serve(sandbox.containers.clone(), streams));
    tokio::spawn(announce());
    let service = AgentServer::new(Service::new(sandbox)).max_decoding_message_size(MAX_REQUEST);
    let calls = calls.incoming().try_filter(|connection| ready(is_from_host(connection)));
    tonic::transport::Server::builder().add_service(service).serve_with_incoming(calls).await?;
    Ok(())
}

/// Containers have vsock sockets too, and the agent does as it is told: only the host may tell it.
fn is_from_host(connection: &VsockStream) -> bool {
    connection.peer_addr().is_ok_and(|peer| peer.cid() == HOST_CID)
}

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A vsock port cannot be bound.
    #[error("vsock port {port} cannot be bound")]
    Listen {
        /// The guest port.
        port: u32,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Children cannot be reaped.
    #[error("children cannot be reaped")]
    Reaper(#[from] std::io::Error),
    /// The listener broke.
    #[error("gRPC server ended")]
    Transport(#[from] tonic::transport::Error),
}

fn listen(port: u32) -> Result<VsockListener, ServeError> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map_err(|source| ServeError::Listen { port, source })
}

/// Connects once to the host's ready port, which says that both guest ports are served. A host that does not
/// listen finds out by asking.
async fn announce() {
    let _ = VsockStream::connect(VsockAddr::new(HOST_CID, READY_PORT)).await;
}
