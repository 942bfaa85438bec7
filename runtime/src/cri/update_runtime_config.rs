//! UpdateRuntimeConfig: kubelet tells the node's pod CIDR. CNI configurations on this node are written by whoever owns
//! the network, so there is nothing to do with it, as in CRI-O.

use super::Node;
use isopod_protocols::cri::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};
use tonic::Status;

pub async fn serve(
    _node: &Node,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    if let Some(network) = network {
        tracing::info!(pod_cidr = network.pod_cidr, "kubelet told the node's pod network");
    }
    Ok(UpdateRuntimeConfigResponse {})
}
