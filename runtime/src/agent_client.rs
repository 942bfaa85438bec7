//! Typed calls to the agent in a guest: gRPC over the VMM's vsock socket.
//!
//! Called by `sandbox` and `container`, and by `preparation` for templates. Every call has a deadline, every
//! answer a limit of bytes and of the entries of its lists, and what a guest says in an error is made
//! printable and cut: the guest is hostile. Nothing here retries: callers know what may be repeated.

mod answers;
mod events;
mod paced;

#[cfg(any(test, feature = "testing"))]
pub use answers::{check_created, check_figures};
#[cfg(any(test, feature = "testing"))]
pub use events::check as check_event;
pub use events::{AgentEvent, AgentEvents};

use crate::hostile_text;
use crate::hypervisor::{HypervisorError, VmHandle};
use answers::Bounded;
use hyper_util::rt::TokioIo;
use isopod_protocols::agent::agent_client::AgentClient as Rpc;
use isopod_protocols::agent::{
    CreateContainerRequest, CreateContainerResponse, HelloRequest, HelloResponse, PrepareRequest,
    RemoveContainerRequest, RemoveExecRequest, ResizeTerminalRequest, SetUpSandboxRequest,
    SignalProcessRequest, StartContainerRequest, StartContainerResponse, StartExecRequest, StartExecResponse,
    StatsRequest, StatsResponse, UpdateContainerRequest, UseProcessorsRequest, WaitProcessRequest,
    WaitProcessResponse, WatchRequest,
};
use isopod_protocols::vsock::AGENT_PORT;
use paced::Paced;
use std::future::Future;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};
use tower::service_fn;

/// Longest answer taken from a guest, bytes: those of a full pod fit. Two bytes of it can be an entry of a
/// list that takes 120 once it is decoded, so about 4 MiB may be in use until its entries are counted.
const MAX_ANSWER: usize = 64 * 1024;

/// Bytes that a guest may have sent and nobody has taken yet, in one call and in all together. The daemon
/// holds them in its memory, for every pod.
const CALL_WINDOW: u32 = MAX_ANSWER as u32;
const CONNECTION_WINDOW: u32 = 4 * CALL_WINDOW;

/// Longest headers of an answer, bytes, each counted with 32 more: an error's text of 2048 bytes, each of
/// them escaped, fits.
const MAX_HEADERS: u32 = 8 * 1024;

/// Longest request sent to one: an OCI spec with a large seccomp profile fits many times.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// Bytes of randomness that a guest's pool is given.
pub const ENTROPY: usize = 64;

/// Limit of calls that only look something up.
const QUICK: Duration = Duration::from_secs(10);

/// Limit of calls that make or take down something in the guest.
const WORK: Duration = Duration::from_secs(60);

/// Limit of making a container: the agent gives up copying the image's volumes after 45 s and its one-shot child after 60, and kubelet
/// waits for 2 minutes.
const CREATION: Duration = Duration::from_secs(110);

/// Why a call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent refused.
    #[error("agent of {id} refused {method}: {message}")]
    Refused {
        /// The VM.
        id: String,
        /// The call.
        method: &'static str,
        /// The agent's code. A guest chooses it: no decision about the host may hang on it alone.
        code: Code,
        /// The agent's words, printable and cut.
        message: String,
    },
    /// The agent did not answer in time.
    #[error("agent of {id} did not answer {method} within {seconds} s")]
    Timeout {
        /// The VM.
        id: String,
        /// The call.
        method: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The agent answered what no honest agent does.
    #[error("agent of {id} answered {method} with {problem}: its guest is broken or hostile; stop the pod")]
    Malformed {
        /// The VM.
        id: String,
        /// The call.
        method: &'static str,
        /// What is wrong with the answer.
        problem: String,
    },
    /// There is no connection to it.
    #[error("agent of {id} cannot be reached for {method}: {message}")]
    Unreachable {
        /// The VM.
        id: String,
        /// The call.
        method: &'static str,
        /// What the transport said.
        message: String,
    },
}

/// The agent of one guest. Clones share one connection, which is made at the first call and again after a break.
#[derive(Debug, Clone)]
pub struct AgentClient {
    id: String,
    rpc: Rpc<Bounded<Channel>>,
    patience: Duration,
}

impl AgentClient {
    /// The agent in `vm`; nothing is sent yet.
    pub fn new(id: &str, vm: VmHandle) -> Self {
        Self::connected(id, vm, None)
    }

    /// As [`Self::new`], where there may be a connection to the agent already; it is used before others are
    /// made.
    pub fn connected(id: &str, vm: VmHandle, mut connection: Option<UnixStream>) -> Self {
        let connect = service_fn(move |_: Uri| {
            let (vm, connection) = (VmHandle::clone(&vm), connection.take());
            async move {
                let stream = match connection {
                    Some(stream) => stream,
                    None => vm.connect_vsock(AGENT_PORT).await?,
                };
                Ok::<_, HypervisorError>(TokioIo::new(Paced::new(stream)))
            }
        });
        // The address is never resolved: the connector knows where to go.
        let channel = Endpoint::from_static("http://agent")
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEADERS)
            .connect_with_connector_lazy(connect);
        let rpc = Rpc::new(Bounded(channel))
            .max_decoding_message_size(MAX_ANSWER)
            .max_encoding_message_size(MAX_REQUEST);
        Self { id: id.to_owned(), rpc, patience: Duration::ZERO }
    }

    /// Gives every call at least `patience`: for guests that give way to all others on their node.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Has a template's agent get ready what every pod will use.
    ///
    /// # Errors
    /// See [`AgentError`]; so for all calls.
    pub async fn prepare(&self) -> Result<(), AgentError> {
        self.call("Prepare", WORK, self.rpc.clone().prepare(PrepareRequest {})).await.map(drop)
    }

    /// Is the agent there, and which one. The first call to a pod's guest: it brings fresh random bytes.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn hello(&self, entropy: [u8; ENTROPY]) -> Result<HelloResponse, AgentError> {
        self.call("Hello", QUICK, self.rpc.clone().hello(HelloRequest { entropy: entropy.into() })).await
    }

    /// Gives the guest its identity.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn set_up_sandbox(&self, request: SetUpSandboxRequest) -> Result<(), AgentError> {
        self.call("SetUpSandbox", WORK, self.rpc.clone().set_up_sandbox(request)).await.map(drop)
    }

    /// Has the guest use so many of its processors.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn use_processors(&self, count: u8) -> Result<(), AgentError> {
        let request = UseProcessorsRequest { count: count.into() };
        self.call("UseProcessors", WORK, self.rpc.clone().use_processors(request)).await.map(drop)
    }

    /// Makes a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, AgentError> {
        const METHOD: &str = "CreateContainer";
        let made = self.call(METHOD, CREATION, self.rpc.clone().create_container(request)).await?;
        answers::check_created(made).map_err(|problem| self.malformed(METHOD, problem))
    }

    /// Lets a container's process run.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start_container(
        &self,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, AgentError> {
        self.call("StartContainer", WORK, self.rpc.clone().start_container(request)).await
    }

    /// Sets new limits on a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn update_container(&self, request: UpdateContainerRequest) -> Result<(), AgentError> {
        self.call("UpdateContainer", WORK, self.rpc.clone().update_container(request)).await.map(drop)
    }

    /// Kills what is left of a container and frees what it held.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn remove_container(&self, request: RemoveContainerRequest) -> Result<(), AgentError> {
        self.call("RemoveContainer", WORK, self.rpc.clone().remove_container(request)).await.map(drop)
    }

    /// Starts another process in a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start_exec(&self, request: StartExecRequest) -> Result<StartExecResponse, AgentError> {
        self.call("StartExec", WORK, self.rpc.clone().start_exec(request)).await
    }

    /// Waits for the end of a process, for at most `limit`.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn wait_process(
        &self,
        request: WaitProcessRequest,
        limit: Duration,
    ) -> Result<WaitProcessResponse, AgentError> {
        self.call("WaitProcess", limit, self.rpc.clone().wait_process(request)).await
    }

    /// Kills and forgets an exec.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn remove_exec(&self, request: RemoveExecRequest) -> Result<(), AgentError> {
        self.call("RemoveExec", WORK, self.rpc.clone().remove_exec(request)).await.map(drop)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn signal_process(&self, request: SignalProcessRequest) -> Result<(), AgentError> {
        self.call("SignalProcess", QUICK, self.rpc.clone().signal_process(request)).await.map(drop)
    }

    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn resize_terminal(&self, request: ResizeTerminalRequest) -> Result<(), AgentError> {
        self.call("ResizeTerminal", QUICK, self.rpc.clone().resize_terminal(request)).await.map(drop)
    }

    /// Usage of containers, answered within `limit`.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn stats(&self, request: StatsRequest, limit: Duration) -> Result<StatsResponse, AgentError> {
        const METHOD: &str = "Stats";
        let stats = self.call(METHOD, limit, self.rpc.clone().stats(request)).await?;
        answers::check_figures(stats).map_err(|problem| self.malformed(METHOD, problem))
    }

    /// The states of all containers, then each change: `sandbox` holds this stream and forwards it.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn watch(&self) -> Result<AgentEvents, AgentError> {
        let stream = self.call("Watch", QUICK, self.rpc.clone().watch(WatchRequest {})).await?;
        Ok(AgentEvents::new(self.clone(), stream))
    }

    fn malformed(&self, method: &'static str, problem: String) -> AgentError {
        AgentError::Malformed { id: self.id.clone(), method, problem }
    }

    fn broken(&self, method: &'static str, status: &Status) -> AgentError {
        let (id, message) = (self.id.clone(), hostile_text::message(status.message()));
        match status.code() {
            // What tonic itself says where there is no connection, or it broke.
            Code::Unavailable | Code::Unknown => AgentError::Unreachable { id, method, message },
            code => AgentError::Refused { id, method, code, message },
        }
    }

    async fn call<T>(
        &self,
        method: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AgentError> {
        let limit = limit.max(self.patience);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.broken(method, &status)),
            Err(_) => Err(AgentError::Timeout { id: self.id.clone(), method, seconds: limit.as_secs() }),
        }
    }
}
