//! A client of a guest's agent for cases that drive a VMM by hand: what the daemon would ask. Calls block.

use crate::vmm::Vmm;
use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use isopod_protocols::agent::agent_client::AgentClient;
use isopod_protocols::agent::{HelloRequest, HelloResponse, PrepareRequest, UseProcessorsRequest};
use isopod_protocols::vsock::AGENT_PORT;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

/// Longest answer of an emulated guest.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection to an agent. It ends when this is dropped.
pub struct Agent {
    runtime: Runtime,
    rpc: AgentClient<Channel>,
}

impl Agent {
    /// Connects to the agent in a guest.
    pub fn connect(vmm: &Vmm) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let path = vmm.vsock();
        let connect = tower::service_fn(move |_: Uri| dial(path.clone()));
        let connected =
            runtime.block_on(Endpoint::from_static("http://agent").connect_with_connector(connect));
        Ok(Self { rpc: AgentClient::new(connected.context("cannot reach the agent")?), runtime })
    }

    /// Asks who is there, with these random bytes.
    pub fn hello(&self, entropy: [u8; 64]) -> Result<HelloResponse> {
        let mut rpc = self.rpc.clone();
        self.wait(async move { rpc.hello(HelloRequest { entropy: entropy.to_vec() }).await })
    }

    /// Has it get ready to be saved.
    pub fn prepare(&self) -> Result<()> {
        let mut rpc = self.rpc.clone();
        self.wait(async move { rpc.prepare(PrepareRequest {}).await }).map(drop)
    }

    /// Has the guest use so many of its processors.
    pub fn use_processors(&self, count: u32) -> Result<()> {
        let mut rpc = self.rpc.clone();
        self.wait(async move { rpc.use_processors(UseProcessorsRequest { count }).await }).map(drop)
    }

    fn wait<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(LIMIT, call).await });
        Ok(answer.context("the agent is silent")??.into_inner())
    }
}

/// The handshake of `isopod_protocols::vsock`.
async fn dial(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    while stream.read_u8().await? != b'\n' {}
    Ok(TokioIo::new(stream))
}

/// 64 bytes that are not the same twice.
pub fn entropy() -> Result<[u8; 64]> {
    let mut bytes = [0; 64];
    let file = std::fs::File::open("/dev/urandom")?;
    io::Read::read_exact(&mut &file, &mut bytes)?;
    ensure!(bytes != [0; 64], "the random device gives zeroes");
    Ok(bytes)
}
