//! ListPodSandbox and StreamPodSandboxes: from memory, as kubelet asks every second.

use super::Node;
use super::sandbox_spec::metadata;
use super::selection::has_labels;
use super::stream::{Messages, messages};
use crate::sandbox::{Sandbox, State};
use isopod_protocols::cri::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter, PodSandboxState,
    StreamPodSandboxesRequest, StreamPodSandboxesResponse,
};
use tonic::Status;

pub async fn serve(node: &Node, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let sandboxes = node.sandboxes.list();
    let items = sandboxes.iter().filter(|sandbox| matches(sandbox, &filter)).map(|s| item(s)).collect();
    Ok(ListPodSandboxResponse { items })
}

/// The same as a stream.
pub async fn stream(
    node: &Node,
    request: StreamPodSandboxesRequest,
) -> Result<Messages<StreamPodSandboxesResponse>, Status> {
    let listed = serve(node, ListPodSandboxRequest { filter: request.filter }).await?;
    Ok(messages(listed.items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}

/// A sandbox's state in the CRI's words.
pub fn state(sandbox: &Sandbox) -> i32 {
    match sandbox.state() {
        State::Ready => PodSandboxState::SandboxReady.into(),
        State::Starting | State::Lost | State::Stopping | State::Stopped => {
            PodSandboxState::SandboxNotready.into()
        }
    }
}

fn matches(sandbox: &Sandbox, filter: &PodSandboxFilter) -> bool {
    sandbox.id.starts_with(&filter.id)
        && filter.state.is_none_or(|wanted| wanted.state == state(sandbox))
        && has_labels(&sandbox.spec.labels, &filter.label_selector)
}

fn item(sandbox: &Sandbox) -> PodSandbox {
    PodSandbox {
        id: sandbox.id.clone(),
        metadata: Some(metadata(&sandbox.spec.name)),
        state: state(sandbox),
        created_at: sandbox.created_at_ns,
        labels: sandbox.spec.labels.clone().into_iter().collect(),
        annotations: sandbox.spec.annotations.clone().into_iter().collect(),
        runtime_handler: sandbox.spec.handler.clone(),
    }
}
