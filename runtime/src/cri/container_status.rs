//! ContainerStatus.

use super::Node;
use super::list_containers::{image_spec, state};
use crate::container::{Container, Record, State, stop_signal};
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
    let stop_signal = stop_signal::in_cri(&container);
    let status = ContainerStatus { stop_signal, ..status(&container.id, record) };
    Ok(ContainerStatusResponse { status: Some(status), info })
}

fn status(id: &str, record: Record) -> ContainerStatus {
    let user = LinuxContainerUser {
        uid: record.user.uid.into(),
        gid: record.user.gid.into(),
        supplemental_groups: record.user.supplemental_groups.iter().map(|&gid| gid.into()).collect(),
    };
    let mut status = ContainerStatus {
        id: id.to_owned(),
        state: state(&record.state).into(),
        created_at: record.created_at_ns,
        image: Some(image_spec(&record.image.asked)),
        image_ref: record.image.reference,
        image_id: record.image.id,
        metadata: record.config.metadata,
        labels: record.config.labels,
        annotations: record.config.annotations,
        mounts: record.config.mounts,
        log_path: record.log_path.map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(ContainerResources { linux: Some(record.resources), windows: None }),
        user: Some(ContainerUser { linux: Some(user) }),
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
        "config": record.config,
    });
    tracing::trace!(container = container.id, "verbose status");
    HashMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Exit, Reason};

    #[test]
    fn exited_container_tells_code_reason_and_times() {
        let exit = Exit {
            started_at_ns: 3,
            finished_at_ns: 9,
            code: 137,
            reason: Reason::OOMKilled,
            message: String::new(),
        };
        let record: Record = serde_json::from_value(serde_json::json!({
            "sandbox_id": "p", "config": isopod_protocols::cri::ContainerConfig::default(),
            "image": {"asked": "busybox", "reference": "r@sha256:1", "id": "sha256:1", "stop_signal": null},
            "created_at_ns": 1, "log_path": "/l/0.log", "layers": [],
            "user": {"uid": 5, "gid": 6, "supplemental_groups": [7]},
            "resources": isopod_protocols::cri::LinuxContainerResources::default(), "state": State::Exited(exit),
        }))
        .unwrap();
        let status = status("c", record);
        assert_eq!((status.started_at, status.finished_at, status.exit_code), (3, 9, 137));
        assert_eq!(status.reason, "OOMKilled");
        assert_eq!(status.log_path, "/l/0.log");
        assert_eq!(status.user.unwrap().linux.unwrap().supplemental_groups, [7]);
    }
}
