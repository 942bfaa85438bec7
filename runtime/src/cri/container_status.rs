//! ContainerStatus.

use super::Node;
use super::container_spec::mount_of;
use super::list_containers::{image_spec, metadata, state};
use super::{resources, signal};
use crate::container::{Container, Record, State};
use isopod_protocols::cri::{
    ContainerResources, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse, ContainerUser,
    LinuxContainerUser,
};
use std::collections::HashMap;
use tonic::Status;

pub async fn serve(node: &Node, request: ContainerStatusRequest) -> Result<ContainerStatusResponse, Status> {
    let container = node.containers.get(&request.container_id)?;
    let record = container.snapshot();
    let info = if request.verbose { info(&container, &record) } else { HashMap::new() };
    Ok(ContainerStatusResponse { status: Some(status(&container.id, record)), info })
}

fn status(id: &str, record: Record) -> ContainerStatus {
    let user = LinuxContainerUser {
        uid: record.user.uid.into(),
        gid: record.user.gid.into(),
        supplemental_groups: record.user.supplemental_groups.iter().map(|&gid| gid.into()).collect(),
    };
    let description = record.description;
    let mut status = ContainerStatus {
        id: id.to_owned(),
        state: state(&record.state).into(),
        created_at: record.created_at_ns,
        metadata: Some(metadata(&description)),
        image: Some(image_spec(&description.image.asked)),
        image_ref: description.image.reference,
        image_id: description.image.id,
        labels: description.labels.into_iter().collect(),
        annotations: description.annotations.into_iter().collect(),
        mounts: description.mounts.into_iter().map(mount_of).collect(),
        log_path: record.stdio.log_path().map(|log| log.path().display().to_string()).unwrap_or_default(),
        resources: Some(ContainerResources {
            linux: Some(resources::to_cri(record.resources)),
            windows: None,
        }),
        user: Some(ContainerUser { linux: Some(user) }),
        stop_signal: signal::to_cri(record.stop_signal),
        ..ContainerStatus::default()
    };
    match record.state {
        State::Created => {}
        State::Running { started_at_ns } => status.started_at = started_at_ns,
        State::Exited(exit) => {
            status.started_at = exit.started_at_ns;
            status.finished_at = exit.finished_at_ns;
            status.exit_code = exit.code;
            status.reason = format!("{:?}", exit.reason);
            status.message = exit.message;
        }
    }
    status
}

/// More, for people: JSON under the key `info`, where crictl looks for it.
fn info(container: &Container, record: &Record) -> HashMap<String, String> {
    let info = serde_json::json!({
        "sandboxID": record.sandbox_id,
        "layers": record.layers,
        "config": record.description,
        "stdio": record.stdio,
        "resources": record.resources,
    });
    tracing::trace!(container = container.id, "verbose status");
    HashMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Description, Exit, LogPath, Reason, Stdio, StdioSink};
    use crate::resources::Resources;
    use std::path::Path;

    #[test]
    fn exited_container_tells_code_reason_and_times() {
        let exit = Exit {
            started_at_ns: 3,
            finished_at_ns: 9,
            code: 137,
            reason: Reason::OOMKilled,
            message: String::new(),
        };
        let log = LogPath::new(Path::new("/l"), Path::new("0.log")).unwrap();
        let record: Record = serde_json::from_value(serde_json::json!({
            "version": Record::VERSION, "sandbox_id": "p", "description": Description::default(),
            "created_at_ns": 1, "layers": [], "stop_signal": 15,
            "stdio": Stdio { sink: StdioSink::CriLog(log), ..Stdio::default() },
            "user": {"uid": 5, "gid": 6, "supplemental_groups": [7]},
            "resources": Resources::default(), "state": State::Exited(exit),
        }))
        .unwrap();
        let status = status("c", record);
        assert_eq!((status.started_at, status.finished_at, status.exit_code), (3, 9, 137));
        assert_eq!(status.reason, "OOMKilled");
        assert_eq!(status.log_path, "/l/0.log");
        assert_eq!(status.user.unwrap().linux.unwrap().supplemental_groups, [7]);
    }
}
