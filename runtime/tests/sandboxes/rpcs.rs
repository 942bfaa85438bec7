//! Every RPC that is published is served by its name, or refused by its name with a reason.

use crate::fakes::FakeNode;
use crate::stats::served;
use isopod_protocols::cri::image_service_server::ImageServiceServer;
use isopod_protocols::cri::runtime_service_server::RuntimeServiceServer;
use isopod_runtime::cri::{ImageDoor, RuntimeDoor};
use std::convert::Infallible;
use std::sync::Arc;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// Source: k8s.io/cri-api v0.37.0, pkg/apis/runtime/v1/api.proto.
const RUNTIME_SERVICE: [&str; 37] = [
    "Version",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "ListPodSandbox",
    "StreamPodSandboxes",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ListContainers",
    "StreamContainers",
    "ContainerStatus",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "StreamContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "StreamPodSandboxStats",
    "UpdateRuntimeConfig",
    "Status",
    "CheckpointContainer",
    "CheckpointPod",
    "RestorePod",
    "GetContainerEvents",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "StreamPodSandboxMetrics",
    "RuntimeConfig",
    "UpdatePodSandboxResources",
];

/// The same.
const IMAGE_SERVICE: [&str; 6] =
    ["ListImages", "StreamImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"];

/// Not built.
const REFUSED: [&str; 10] = [
    "Exec",
    "Attach",
    "PortForward",
    "CheckpointContainer",
    "CheckpointPod",
    "RestorePod",
    "GetContainerEvents",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "StreamPodSandboxMetrics",
];

/// Calls an RPC with an empty request.
async fn call<S>(service: S, path: String) -> Result<(), Status>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    let path = PathAndQuery::try_from(path).unwrap();
    let mut client = Grpc::new(service);
    client.ready().await.unwrap();
    client.unary(Request::new(()), path, ProstCodec::<(), ()>::default()).await.map(drop)
}

fn assert_served(rpc: &str, answer: Result<(), Status>) {
    let (code, message) =
        answer.err().map_or((Code::Ok, String::new()), |status| (status.code(), status.message().to_owned()));
    let refused = code == Code::Unimplemented;
    assert_eq!(refused, REFUSED.contains(&rpc), "{rpc}: {code:?} {message:?}");
    // A service answers this code without a message where it has no such method.
    assert!(!refused || message.starts_with(&format!("{rpc}: ")), "{rpc}: {message:?}");
}

#[tokio::test]
async fn every_published_rpc_is_served_or_refused_by_name() {
    let (node, _directory) = served(FakeNode::new()).await;
    let runtime = RuntimeServiceServer::new(RuntimeDoor::new(Arc::clone(&node)));
    for rpc in RUNTIME_SERVICE {
        assert_served(rpc, call(runtime.clone(), format!("/runtime.v1.RuntimeService/{rpc}")).await);
    }
    let image = ImageServiceServer::new(ImageDoor::new(node));
    for rpc in IMAGE_SERVICE {
        assert_served(rpc, call(image.clone(), format!("/runtime.v1.ImageService/{rpc}")).await);
    }
}
