//! Status: whether the node can take pods. kubelet asks every five seconds, so nothing is started for it.

use super::Node;
use isopod_protocols::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};
use serde_json::json;
use std::collections::HashMap;
use tonic::Status;

pub async fn serve(node: &Node, request: StatusRequest) -> Result<StatusResponse, Status> {
    // Answering at all is being ready: the daemon does not open its door on a machine that cannot run VMs.
    let runtime = condition("RuntimeReady", None);
    let network = node.sandboxes.network_ready().err();
    let network =
        condition("NetworkReady", network.map(|error| ("NetworkPluginNotReady", error.to_string())));
    let info = if request.verbose { info(node) } else { HashMap::new() };
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions: vec![runtime, network] }),
        info,
        runtime_handlers: node.config.handler_names().into_iter().map(handler).collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: false,
        }),
    })
}

fn condition(name: &str, trouble: Option<(&str, String)>) -> RuntimeCondition {
    let status = trouble.is_none();
    let (reason, message) = trouble.unwrap_or_default();
    RuntimeCondition { r#type: name.to_owned(), status, reason: reason.to_owned(), message }
}

fn handler(name: &str) -> RuntimeHandler {
    let features = RuntimeHandlerFeatures { recursive_read_only_mounts: false, user_namespaces: false };
    RuntimeHandler { name: name.to_owned(), features: Some(features) }
}

/// critest reads `stateDir`. `templateMisses` counts the pods that booted though they might have been clones.
fn info(node: &Node) -> HashMap<String, String> {
    let config = json!({
        "stateDir": node.config.daemon.state_dir,
        "rootDir": node.config.daemon.root_dir,
        "config": *node.config,
    });
    HashMap::from([
        ("config".to_owned(), config.to_string()),
        ("templates".to_owned(), json!(node.templates.list()).to_string()),
        ("templateMisses".to_owned(), node.templates.misses().to_string()),
    ])
}
