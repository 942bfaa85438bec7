//! ImageFsInfo: what images take of which file system. kubelet compares it with what it finds there itself, and does not
//! start without it.

use super::Node;
use k8s_cri::v1::{
    FilesystemIdentifier, FilesystemUsage, ImageFsInfoRequest, ImageFsInfoResponse, UInt64Value,
};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::Status;

pub async fn serve(node: &Node, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
    let info = node.images.fs_info().await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let usage = FilesystemUsage {
        timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(FilesystemIdentifier { mountpoint: info.directory.display().to_string() }),
        used_bytes: Some(UInt64Value { value: info.usage.bytes }),
        inodes_used: Some(UInt64Value { value: info.usage.inodes }),
    };
    // the scratch disks of containers are on the same file system
    Ok(ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
