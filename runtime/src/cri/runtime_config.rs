//! RuntimeConfig: tells kubelet which cgroup driver to use.

use super::Node;
use isopod_protocols::cri::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse,
};
use std::path::Path;
use tonic::Status;

pub async fn serve(_node: &Node, _request: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status> {
    // What sd_booted(3) looks at.
    let driver = match Path::new("/run/systemd/system").is_dir() {
        true => CgroupDriver::Systemd,
        false => CgroupDriver::Cgroupfs,
    };
    Ok(RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) })
}
