//! ListContainers and StreamContainers: from memory; kubelet asks every second.

use super::Node;
use super::stream::{Messages, messages};
use crate::container::{Container as Known, State};
use isopod_protocols::cri::{
    Container, ContainerFilter, ContainerState, ImageSpec, ListContainersRequest, ListContainersResponse,
    StreamContainersRequest, StreamContainersResponse,
};
use std::collections::HashMap;
use tonic::Status;

pub async fn serve(node: &Node, request: ListContainersRequest) -> Result<ListContainersResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let all = node.containers.list();
    let containers = all.iter().map(|c| container(c)).filter(|c| passes(c, &filter)).collect();
    Ok(ListContainersResponse { containers })
}

/// The same as a stream.
pub async fn stream(
    node: &Node,
    request: StreamContainersRequest,
) -> Result<Messages<StreamContainersResponse>, Status> {
    let listed = serve(node, ListContainersRequest { filter: request.filter }).await?;
    Ok(messages(listed.containers, |containers| StreamContainersResponse { containers }))
}

/// The CRI's word for a state.
pub fn state(state: &State) -> ContainerState {
    match state {
        State::Created => ContainerState::ContainerCreated,
        State::Running { .. } => ContainerState::ContainerRunning,
        State::Exited(_) => ContainerState::ContainerExited,
    }
}

/// The image as the pod named it.
pub fn image_spec(asked: &str) -> ImageSpec {
    ImageSpec { image: asked.to_owned(), user_specified_image: asked.to_owned(), ..ImageSpec::default() }
}

/// Whether labels hold all that a selector names.
pub fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn container(known: &Known) -> Container {
    let record = known.snapshot();
    Container {
        id: known.id.clone(),
        pod_sandbox_id: record.sandbox_id,
        metadata: record.config.metadata,
        image: Some(image_spec(&record.image.asked)),
        image_ref: record.image.reference,
        image_id: record.image.id,
        state: state(&record.state).into(),
        created_at: record.created_at_ns,
        labels: record.config.labels,
        annotations: record.config.annotations,
    }
}

fn passes(container: &Container, filter: &ContainerFilter) -> bool {
    container.id.starts_with(&filter.id)
        && container.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == container.state)
        && selected(&container.labels, &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::cri::ContainerStateValue;

    #[test]
    fn all_parts_of_a_filter_must_fit() {
        let labels = HashMap::from([("app".to_owned(), "web".to_owned())]);
        let container = Container {
            id: "abc".into(),
            pod_sandbox_id: "p1".into(),
            labels: labels.clone(),
            ..Container::default()
        };
        let fits = |filter: ContainerFilter| passes(&container, &filter);
        assert!(fits(ContainerFilter::default()));
        assert!(fits(ContainerFilter {
            id: "ab".into(),
            label_selector: labels,
            ..ContainerFilter::default()
        }));
        assert!(!fits(ContainerFilter { id: "x".into(), ..ContainerFilter::default() }));
        let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        assert!(!fits(ContainerFilter { state: Some(running), ..ContainerFilter::default() }));
        let other = HashMap::from([("app".to_owned(), "db".to_owned())]);
        assert!(!fits(ContainerFilter { label_selector: other, ..ContainerFilter::default() }));
    }
}
