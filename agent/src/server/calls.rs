//! The gRPC service: each call is handed to the module whose business it is, with the part of the sandbox
//! that it works on.

use super::watch;
use crate::sandbox::{self, Sandbox};
use crate::{container, processors, stats};
use isopod_protocols::agent::agent_server::Agent;
use isopod_protocols::agent::*;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service, on the guest's one sandbox.
pub struct Service {
    sandbox: Arc<Sandbox>,
}

impl Service {
    /// A service that works on `sandbox`.
    pub fn new(sandbox: Arc<Sandbox>) -> Service {
        Service { sandbox }
    }
}

/// What each call returns.
type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, impl Into<Status>>) -> Answer<T> {
    result.map(Response::new).map_err(Into::into)
}

#[tonic::async_trait]
impl Agent for Service {
    type WatchStream = watch::EventStream;

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
        let storage = self.sandbox.storage()?;
        answer(container::create(&self.sandbox.containers, storage, r.into_inner()).await)
    }
    async fn start_container(&self, r: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        answer(container::start(&self.sandbox.containers, r.into_inner()).await)
    }
    async fn update_container(&self, r: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        answer(container::update(&self.sandbox.containers, r.into_inner()).await)
    }
    async fn remove_container(&self, r: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        let storage = self.sandbox.storage().ok();
        answer(container::remove(&self.sandbox.containers, storage, r.into_inner()).await)
    }
    async fn start_exec(&self, r: Request<StartExecRequest>) -> Answer<StartExecResponse> {
        answer(container::start_exec(&self.sandbox.containers, r.into_inner()).await)
    }
    async fn wait_process(&self, r: Request<WaitProcessRequest>) -> Answer<WaitProcessResponse> {
        answer(container::wait(&self.sandbox.containers, r.into_inner()).await)
    }
    async fn remove_exec(&self, r: Request<RemoveExecRequest>) -> Answer<RemoveExecResponse> {
        answer(container::remove_exec(&self.sandbox.containers, r.into_inner()).await)
    }
    async fn signal_process(&self, r: Request<SignalProcessRequest>) -> Answer<SignalProcessResponse> {
        answer(container::signal(&self.sandbox.containers, r.into_inner()).await)
    }
    async fn resize_terminal(&self, r: Request<ResizeTerminalRequest>) -> Answer<ResizeTerminalResponse> {
        answer(container::resize_terminal(&self.sandbox.containers, r.into_inner()).await)
    }
    async fn stats(&self, r: Request<StatsRequest>) -> Answer<StatsResponse> {
        let storage = self.sandbox.storage()?;
        let running = self.sandbox.containers.states.running();
        answer(stats::collect(&self.sandbox.walks, storage, running, r.into_inner()).await)
    }
    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        Ok(Response::new(watch::watch(&self.sandbox.containers.states)))
    }
}
