//! Volumes of an image (`VOLUME`): which of them a container has. The rules are those of containerd's CRI
//! plugin.
//!
//! Called by `container_spec`. `container` gives each a directory and a mount.

use super::ContainerConfigError;
use crate::image::ImageConfiguration;
use isopod_protocols::cri::Mount as CriMount;
use isopod_protocols::guest::MAX_VOLUMES;
use std::path::{Component, Path, PathBuf};

/// Where containers have the pod's shared memory: any of them may put a link in the way of a path below it.
const SHARED_MEMORY: &str = "/dev/shm";

/// Paths of the volumes that a container of the image has, sorted: absolute, without `.` and `..`, each once,
/// and none that a mount of the pod's hides.
///
/// # Errors
/// A volume that would hide the whole root, the container's devices or what the kernel tells of processes,
/// one among files that all containers of the pod share, or too many.
pub fn of_container(
    image: &ImageConfiguration,
    mounts: &[CriMount],
) -> Result<Vec<String>, ContainerConfigError> {
    let mut volumes: Vec<String> = image.volumes.iter().map(|path| clean(path)).collect();
    volumes.sort_unstable();
    volumes.dedup();
    volumes.retain(|volume| mounts.iter().all(|mount| clean(&mount.container_path) != *volume));
    let invalid = |reason: String| ContainerConfigError::Invalid { field: "VOLUME of the image", reason };
    if volumes.len() > MAX_VOLUMES {
        return Err(invalid(format!("{} volumes, more than {MAX_VOLUMES}", volumes.len())));
    }
    match volumes.iter().find(|volume| !is_possible(volume)) {
        Some(volume) => Err(invalid(format!("{volume:?} cannot be a volume; name a directory elsewhere"))),
        None => Ok(volumes),
    }
}

/// Whether a volume may be at a cleaned path. The agent refuses others of whose place it knows nothing: what
/// lies deeper in file systems that are new with the container.
fn is_possible(volume: &str) -> bool {
    let path = Path::new(volume);
    let is_in = |directory: &str| path.starts_with(directory);
    let shared = is_in(SHARED_MEMORY) && path != Path::new(SHARED_MEMORY);
    !(volume == "/" || volume == "/dev" || is_in("/proc") || shared)
}

/// A path as Go's `filepath.Clean` has it, below the root whatever it begins with.
pub fn clean(path: &str) -> String {
    let mut cleaned = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    // The path was a string.
    cleaned.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volumes(paths: &[&str], mounts: &[&str]) -> Result<Vec<String>, ContainerConfigError> {
        let named: serde_json::Map<_, _> = paths.iter().map(|&path| (path.to_owned(), json!({}))).collect();
        let rootfs = json!({"type": "layers", "diff_ids": []});
        let document =
            json!({"architecture": "amd64", "os": "linux", "config": {"Volumes": named}, "rootfs": rootfs});
        let image = ImageConfiguration::parse(document.to_string().as_bytes()).unwrap();
        let mount = |path: &&str| CriMount { container_path: (*path).to_owned(), ..CriMount::default() };
        of_container(&image, &mounts.iter().map(mount).collect::<Vec<_>>())
    }

    #[test]
    fn paths_are_cleaned_and_named_once() {
        let cleaned = volumes(&["/data/", "/data", "opt/x", "/a/../b//c/.", "/../up"], &[]).unwrap();
        assert_eq!(cleaned, ["/b/c", "/data", "/opt/x", "/up"]);
    }

    #[test]
    fn mount_of_the_pod_takes_the_place_of_a_volume() {
        assert_eq!(volumes(&["/data", "/data/sub"], &["/data/"]).unwrap(), ["/data/sub"]);
    }

    #[test]
    fn root_devices_and_processes_cannot_be_volumes() {
        for path in ["/", "", "/dev/", "/x/../proc", "/proc/sys", "proc/self/attr/", "/dev/shm/x"] {
            let error = volumes(&[path], &[]).unwrap_err().to_string();
            assert!(error.starts_with("VOLUME of the image: "), "{error}");
        }
        let many: Vec<String> = (0..=MAX_VOLUMES).map(|number| format!("/{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(volumes(&many, &[]).unwrap_err().to_string().contains("257 volumes"));
    }
}
