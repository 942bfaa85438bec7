//! The CRI door: `runtime.v1.RuntimeService` and `runtime.v1.ImageService`. Each RPC is one line here and one file of its
//! name; what it does is in `sandbox`, `container` and `image`.
//!
//! Files translate between the CRI's messages and the core's own types: they look things up, call one
//! operation, and build the answer. `sandbox_spec` and `container_spec` make specifications of the two large
//! requests. Nothing below this folder knows the CRI. Errors become gRPC codes in [`status`], nowhere else.
//! What is not served answers Unimplemented and says so.

mod status;

pub mod server;

pub mod container_spec;
mod container_stats;
mod container_status;
mod create_container;
mod exec_sync;
mod image_door;
mod image_fs_info;
mod image_status;
mod list_containers;
mod list_images;
mod list_pod_sandbox;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod pull_image;
mod remove_container;
mod remove_image;
mod remove_pod_sandbox;
mod reopen_container_log;
mod resources;
mod run_pod_sandbox;
mod runtime_config;
mod runtime_status;
pub mod sandbox_spec;
mod selection;
mod signal;
mod start_container;
mod stop_container;
mod stop_pod_sandbox;
mod stream;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

use crate::config::Config;
use crate::container::Containers;
use crate::hypervisor::template::Templates;
use crate::image::Images;
use crate::pod::Pods;
use crate::sandbox::Sandboxes;
use async_trait::async_trait;
use isopod_protocols::cri::runtime_service_server::RuntimeService;
use isopod_protocols::cri::{self as v1, ContainerEventResponse};
use std::sync::Arc;
use stream::Messages;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

/// What the doors serve: everything on this node.
pub struct Node {
    /// The configuration.
    pub config: Arc<Config>,
    /// All sandboxes.
    pub sandboxes: Arc<Sandboxes>,
    /// All containers.
    pub containers: Arc<Containers>,
    /// Both together.
    pub pods: Pods,
    /// All images.
    pub images: Images,
    /// All templates.
    pub templates: Arc<Templates>,
}

pub use image_door::ImageDoor;

/// `runtime.v1.RuntimeService`.
pub struct RuntimeDoor {
    node: Arc<Node>,
}

impl RuntimeDoor {
    /// The service, on `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// An RPC that is not served.
fn absent<T>(rpc: &str, reason: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("{rpc}: {reason}")))
}

#[async_trait]
impl RuntimeService for RuntimeDoor {
    type GetContainerEventsStream = Empty<Result<ContainerEventResponse, Status>>;
    type StreamContainerStatsStream = Messages<v1::StreamContainerStatsResponse>;
    type StreamContainersStream = Messages<v1::StreamContainersResponse>;
    type StreamPodSandboxMetricsStream = Empty<Result<v1::StreamPodSandboxMetricsResponse, Status>>;
    type StreamPodSandboxStatsStream = Messages<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxesStream = Messages<v1::StreamPodSandboxesResponse>;

    async fn version(&self, request: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        version::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        run_pod_sandbox::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        stop_pod_sandbox::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        remove_pod_sandbox::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        pod_sandbox_status::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        list_pod_sandbox::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        list_pod_sandbox::stream(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        create_container::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        start_container::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        stop_container::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        remove_container::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        list_containers::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        list_containers::stream(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        container_status::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        update_container_resources::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        reopen_container_log::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        exec_sync::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn exec(&self, _: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        absent("Exec", "streaming is not served yet: use ExecSync (crictl exec -s)")
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        absent("Attach", "streaming is not served yet: read the container's log")
    }

    async fn port_forward(&self, _: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        absent("PortForward", "streaming is not served yet: use the pod's address")
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        container_stats::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        container_stats::list(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        container_stats::stream(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        pod_sandbox_stats::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        pod_sandbox_stats::serve_list(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        pod_sandbox_stats::stream(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        update_runtime_config::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        runtime_status::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        absent(
            "CheckpointContainer",
            "checkpoints of containers are not served: a container lives in its pod's VM",
        )
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        absent("CheckpointPod", "checkpoints of pods are not served yet: keep the pod running")
    }

    async fn restore_pod(&self, _: Request<v1::RestorePodRequest>) -> Answer<v1::RestorePodResponse> {
        absent("RestorePod", "checkpoints of pods are not served yet: use RunPodSandbox and CreateContainer")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        absent(
            "ListMetricDescriptors",
            "metrics in this form are not served: use ListPodSandboxStats and ListContainerStats",
        )
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        absent(
            "ListPodSandboxMetrics",
            "metrics in this form are not served: use ListPodSandboxStats and ListContainerStats",
        )
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        absent(
            "StreamPodSandboxMetrics",
            "metrics in this form are not served: use StreamPodSandboxStats and StreamContainerStats",
        )
    }

    async fn runtime_config(
        &self,
        request: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        runtime_config::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        update_pod_sandbox_resources::serve(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        absent("GetContainerEvents", "events are not served: list sandboxes and containers")
    }
}
