//! PodSandboxStatus: what is known of one sandbox; verbose adds what an operator looks for.

use super::Node;
use super::list_pod_sandbox::state;
use super::sandbox_spec::{metadata, namespace_options};
use crate::sandbox::{Record, Sandbox};
use isopod_protocols::cri::{
    LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxNetworkStatus, PodSandboxStatus,
    PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use serde_json::json;
use std::collections::HashMap;
use tonic::Status;

pub async fn serve(
    node: &Node,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let sandbox = node.sandboxes.get(&request.pod_sandbox_id)?;
    let record = sandbox.snapshot();
    let info = if request.verbose { info(&sandbox, &record).await } else { HashMap::new() };
    let status = Some(status(&sandbox, &record));
    Ok(PodSandboxStatusResponse { status, info, ..Default::default() })
}

fn status(sandbox: &Sandbox, record: &Record) -> PodSandboxStatus {
    let mut addresses = record.addresses.iter().map(ToString::to_string);
    let network = PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
    };
    let options = namespace_options(sandbox.spec.namespaces);
    PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: Some(metadata(&sandbox.spec.name)),
        state: state(sandbox),
        created_at: sandbox.created_at_ns,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
        labels: sandbox.spec.labels.clone().into_iter().collect(),
        annotations: sandbox.spec.annotations.clone().into_iter().collect(),
        runtime_handler: sandbox.spec.handler.clone(),
    }
}

/// One JSON document, as crictl expects it.
async fn info(sandbox: &Sandbox, record: &Record) -> HashMap<String, String> {
    let vmm = sandbox.vm_stats().await.unwrap_or_default();
    let info = json!({
        "state": record.state,
        "pid": record.vm.as_ref().map(|vm| vm.pid),
        "vmm": vmm,
        "vcpus": record.size.0,
        "memoryMib": record.size.1,
        "uid": record.uid,
        "guest": record.guest,
        "cgroup": record.cgroup.path(),
        "directory": record.directory,
        "config": record.spec,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
