//! ListContainers and StreamContainers: from memory; kubelet asks every second.

use super::Node;
use super::selection::has_labels;
use super::stream::{Messages, messages};
use crate::container::{Description, Record, State};
use isopod_protocols::cri::{
    Container, ContainerFilter, ContainerMetadata, ContainerState, ImageSpec, ListContainersRequest,
    ListContainersResponse, StreamContainersRequest, StreamContainersResponse,
};
use tonic::Status;

pub async fn serve(node: &Node, request: ListContainersRequest) -> Result<ListContainersResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let all = node.containers.list();
    let known = all.iter().map(|container| (container.id.as_str(), container.snapshot()));
    let wanted = known.filter(|(id, record)| passes(id, record, &filter));
    Ok(ListContainersResponse { containers: wanted.map(|(id, record)| container(id, record)).collect() })
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

/// A container's metadata in the CRI's words.
pub fn metadata(description: &Description) -> ContainerMetadata {
    ContainerMetadata { name: description.name.clone(), attempt: description.attempt }
}

fn container(id: &str, record: Record) -> Container {
    let description = record.description;
    Container {
        id: id.to_owned(),
        pod_sandbox_id: record.sandbox_id,
        metadata: Some(metadata(&description)),
        image: Some(image_spec(&description.image.asked)),
        image_ref: description.image.reference,
        image_id: description.image.id,
        state: state(&record.state).into(),
        created_at: record.created_at_ns,
        labels: description.labels.into_iter().collect(),
        annotations: description.annotations.into_iter().collect(),
    }
}

fn passes(id: &str, record: &Record, filter: &ContainerFilter) -> bool {
    id.starts_with(&filter.id)
        && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(state(&record.state)))
        && has_labels(&record.description.labels, &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Stdio, stop_signal};
    use crate::resources::Resources;
    use isopod_protocols::cri::ContainerStateValue;
    use std::collections::HashMap;

    #[test]
    fn all_parts_of_a_filter_must_fit() {
        let labels = HashMap::from([("app".to_owned(), "web".to_owned())]);
        let description =
            Description { labels: labels.clone().into_iter().collect(), ..Description::default() };
        let record = Record {
            version: Record::VERSION,
            sandbox_id: "p1".into(),
            description,
            created_at_ns: 1,
            stdio: Stdio::default(),
            layers: Vec::new(),
            user: Default::default(),
            stop_signal: stop_signal::DEFAULT,
            resources: Resources::default(),
            state: State::Created,
        };
        let fits = |filter: ContainerFilter| passes("abc", &record, &filter);
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
