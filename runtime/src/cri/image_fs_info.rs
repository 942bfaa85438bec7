//! ImageFsInfo: what images take of which file system. kubelet compares it with what it finds there itself, and does not
//! start without it.

use super::Node;
use crate::wall_clock::now_ns;
use isopod_protocols::cri::{
    FilesystemIdentifier, FilesystemUsage, ImageFsInfoRequest, ImageFsInfoResponse, UInt64Value,
};
use tonic::Status;

pub async fn serve(node: &Node, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
    let info = node.images.fs_info().await?;
    let usage = FilesystemUsage {
        timestamp: now_ns(),
        fs_id: Some(FilesystemIdentifier { mountpoint: info.directory.display().to_string() }),
        used_bytes: Some(UInt64Value { value: info.usage.bytes }),
        inodes_used: Some(UInt64Value { value: info.usage.inodes }),
    };
    // the scratch disks of containers are on the same file system
    Ok(ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
