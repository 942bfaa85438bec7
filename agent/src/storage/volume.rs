//! Volumes of an image (`VOLUME`): directories on scratch that belong to one container and go with it.
//!
//! As containerd has them: each begins with a copy of what the image has at the volume's path, with owner and
//! mode, or empty, 0755 of root, where no layer has the path. The runtime's spec mounts them. A copy is
//! bounded by the scratch disk and by time.

use super::copy::{self, CopyError};
use super::paths::RootPaths;
use super::view::{FileKind, Found, Missing, View, ViewError};
use isopod_protocols::guest::MAX_VOLUMES;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the copies of all volumes of one container may take. The runtime waits for the whole creation no
/// longer than kubelet does, which is 2 minutes.
const DEADLINE: Duration = Duration::from_secs(45);

/// Why a container's volumes could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// More than a container may have.
    #[error("{0} volumes, a container has at most {MAX_VOLUMES}")]
    Count(usize),
    /// The volume's path in the image leads nowhere.
    #[error("volume {volume}")]
    Path {
        /// As the image names it.
        volume: String,
        /// Why.
        source: ViewError,
    },
    /// The image has a file there.
    #[error(
        "volume {volume}: the image has a file there, a volume is a directory; change VOLUME in the image"
    )]
    File {
        /// As the image names it.
        volume: String,
    },
    /// What the image has there cannot be copied to scratch.
    #[error("volume {volume}: what the image has there is copied to the pod's scratch disk; does it fit?")]
    Copy {
        /// As the image names it.
        volume: String,
        /// Why.
        source: CopyError,
    },
    /// A directory of the agent's own.
    #[error("{} cannot be made", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes a directory for each of `volumes`, named by its number, and fills it from the container's root. The
/// caller takes away what a failure leaves.
pub fn make(paths: &RootPaths, volumes: &[String]) -> Result<(), VolumeError> {
    if volumes.len() > MAX_VOLUMES {
        return Err(VolumeError::Count(volumes.len()));
    }
    let deadline = Instant::now() + DEADLINE;
    let view = View::of_root(&paths.root)
        .map_err(|source| VolumeError::Directory { path: paths.root.clone(), source })?;
    for (number, volume) in volumes.iter().enumerate() {
        let target = paths.volumes.join(number.to_string());
        fs::DirBuilder::new()
            .mode(0o755)
            .recursive(true)
            .create(&target)
            .map_err(|source| VolumeError::Directory { path: target.clone(), source })?;
        let found = view
            .find(Path::new(volume), Missing::Tell)
            .map_err(|source| VolumeError::Path { volume: volume.clone(), source })?;
        match found {
            None => {}
            Some(Found { kind: FileKind::Directory, path, .. }) => {
                let source = paths.root.join(path.strip_prefix("/").unwrap_or(&path));
                copy::directory(&source, &target, deadline)
                    .map_err(|source| VolumeError::Copy { volume: volume.clone(), source })?;
            }
            Some(_) => return Err(VolumeError::File { volume: volume.clone() }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn paths(directory: &Path) -> RootPaths {
        let mut paths = RootPaths::of(&Id::parse("container_id", "c1").unwrap());
        fs::create_dir_all(directory.join("root")).unwrap();
        paths.root = directory.join("root");
        paths.volumes = directory.join("volumes");
        paths
    }

    #[test]
    fn volumes_begin_with_the_images_content_or_empty() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        fs::create_dir_all(paths.root.join("real/data")).unwrap();
        fs::write(paths.root.join("real/data/file"), "text").unwrap();
        fs::set_permissions(paths.root.join("real/data"), fs::Permissions::from_mode(0o710)).unwrap();
        symlink("/real", paths.root.join("link")).unwrap();
        symlink("nowhere", paths.root.join("dangling")).unwrap();
        make(&paths, &["/link/data".into(), "/absent/deep".into(), "/dangling".into()]).unwrap();
        assert_eq!(fs::read(paths.volumes.join("0/file")).unwrap(), b"text");
        let mode = |number| fs::metadata(paths.volumes.join(number)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(["0", "1", "2"].map(mode), [0o710, 0o755, 0o755]);
        assert!(!paths.root.join("absent").exists() && !paths.root.join("nowhere").exists());
    }

    #[test]
    fn file_in_place_of_a_volume_is_refused_by_path() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        fs::write(paths.root.join("file"), "").unwrap();
        let error = make(&paths, &["/file".into()]).unwrap_err();
        assert!(error.to_string().starts_with("volume /file: the image has a file"), "{error}");
    }

    #[test]
    fn too_many_volumes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let volumes: Vec<String> = (0..=MAX_VOLUMES).map(|number| format!("/{number}")).collect();
        assert!(matches!(make(&paths(directory.path()), &volumes), Err(VolumeError::Count(_))));
    }
}
