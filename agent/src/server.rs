//! The agent's gRPC service: each call is one line that hands it to the module whose business it is.

use crate::sandbox::Sandbox;
use crate::{container, error::AgentError, process, processors, reaper, sandbox, stats, stdio};
use futures_util::TryStreamExt;
use futures_util::future::ready;
use isopod_protocols::agent::agent_server::{Agent, AgentServer};
use isopod_protocols::agent::*;
use isopod_protocols::vsock::{AGENT_PORT, HOST_CID, READY_PORT, STDIO_PORT};
use std::sync::Arc;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use tonic::{Request, Response, Status};

/// Largest request, in bytes: an OCI spec of a pod with many mounts is a few hundred KiB.
const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// Listens on both guest ports, tells the host, and serves until the listener fails.
pub async fn serve(sandbox: Arc<Sandbox>) -> Result<(), ServeError> {
    let calls = listen(AGENT_PORT)?;
    let streams = listen(STDIO_PORT)?;
    reaper::start(sandbox.clone())?;
    tokio::spawn(stdio::serve(sandbox.clone(), streams));
    tokio::spawn(announce());
    let service = AgentServer::new(Service { sandbox }).max_decoding_message_size(MAX_REQUEST);
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

/// Connects once to the host's ready port, which says that both guest ports are served. A host that does not listen finds
/// out by asking.
async fn announce() {
    let _ = VsockStream::connect(VsockAddr::new(HOST_CID, READY_PORT)).await;
}

struct Service {
    sandbox: Arc<Sandbox>,
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, AgentError>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl Agent for Service {
    type WatchStream = container::EventStream;

    async fn prepare(&self, _: Request<PrepareRequest>) -> Answer<PrepareResponse> {
        answer(sandbox::prepare())
    }
    async fn hello(&self, r: Request<HelloRequest>) -> Answer<HelloResponse> {
        answer(sandbox::hello(&r.into_inner()))
    }
    async fn set_up_sandbox(&self, r: Request<SetUpSandboxRequest>) -> Answer<SetUpSandboxResponse> {
        answer(sandbox::set_up(&self.sandbox, r.into_inner()).await)
    }
    async fn use_processors(&self, r: Request<UseProcessorsRequest>) -> Answer<UseProcessorsResponse> {
        answer(processors::use_processors(r.into_inner()).await)
    }
    async fn create_container(&self, r: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        answer(container::create(&self.sandbox, r.into_inner()).await)
    }
    async fn start_container(&self, r: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        answer(container::start(&self.sandbox, r.into_inner()).await)
    }
    async fn update_container(&self, r: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        answer(container::update(&self.sandbox, r.into_inner()).await)
    }
    async fn remove_container(&self, r: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        answer(container::remove(&self.sandbox, r.into_inner()).await)
    }
    async fn start_exec(&self, r: Request<StartExecRequest>) -> Answer<StartExecResponse> {
        answer(process::start_exec(&self.sandbox, r.into_inner()).await)
    }
    async fn wait_process(&self, r: Request<WaitProcessRequest>) -> Answer<WaitProcessResponse> {
        answer(process::wait(&self.sandbox, r.into_inner()).await)
    }
    async fn remove_exec(&self, r: Request<RemoveExecRequest>) -> Answer<RemoveExecResponse> {
        answer(process::remove_exec(&self.sandbox, r.into_inner()).await)
    }
    async fn signal_process(&self, r: Request<SignalProcessRequest>) -> Answer<SignalProcessResponse> {
        answer(process::signal(&self.sandbox, r.into_inner()).await)
    }
    async fn resize_terminal(&self, r: Request<ResizeTerminalRequest>) -> Answer<ResizeTerminalResponse> {
        answer(process::resize_terminal(&self.sandbox, r.into_inner()).await)
    }
    async fn stats(&self, r: Request<StatsRequest>) -> Answer<StatsResponse> {
        answer(stats::collect(&self.sandbox, r.into_inner()).await)
    }
    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        answer(container::watch(&self.sandbox))
    }
}
