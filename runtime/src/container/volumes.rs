//! Mounts that show a container's volumes: directories on the pod's scratch disk, each of which the agent
//! fills with what the root has at its path.
//!
//! Called by `request`. Which volumes a container has is for whoever specifies it.

use isopod_protocols::guest;
use oci_spec::runtime::Mount;
use std::path::{Path, PathBuf};

/// Read and write, also where the root is read-only, and none of the restrictions of the scratch disk's own
/// mount.
const OPTIONS: [&str; 6] = ["rbind", "rprivate", "rw", "rsuid", "rdev", "rrelatime"];

/// Adds the mounts of `volumes`, which are sorted. A volume takes the place of a mount at its path, as with
/// containerd: images for systemd have one at `/sys/fs/cgroup`. It comes before mounts below it, which it
/// would hide, and after all others.
pub fn insert(mounts: &mut Vec<Mount>, id: &str, volumes: &[String]) {
    let directory = guest::volumes(id);
    for (number, volume) in volumes.iter().enumerate() {
        let path = Path::new(volume);
        mounts.retain(|mount| mount.destination() != path);
        let below = mounts.iter().position(|mount| mount.destination().starts_with(path));
        mounts.insert(below.unwrap_or(mounts.len()), mount(path, &format!("{directory}/{number}")));
    }
}

fn mount(destination: &Path, source: &str) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(OPTIONS.map(str::to_owned).to_vec()));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Mount {
        mount(Path::new(path), "source")
    }

    fn destinations(mounts: &[Mount]) -> Vec<String> {
        mounts.iter().map(|mount| mount.destination().display().to_string()).collect()
    }

    #[test]
    fn mounts_name_the_agents_directories() {
        let mut mounts = Vec::new();
        insert(&mut mounts, "c1", &["/a".to_owned(), "/b".to_owned()]);
        let source = mounts[1].source().as_ref().unwrap();
        assert_eq!(
            (mounts[1].destination(), source),
            (&"/b".into(), &"/run/isopod/scratch/c1/volumes/1".into())
        );
    }

    #[test]
    fn volumes_come_after_what_would_hide_them_and_replace_what_is_at_their_path() {
        let mut mounts = ["/proc", "/sys", "/sys/fs/cgroup", "/etc/hostname", "/etc/hosts"].map(at).to_vec();
        let volumes = ["/etc", "/etc/deep/volume", "/sys/fs/cgroup"].map(str::to_owned);
        insert(&mut mounts, "c1", &volumes);
        let destinations = destinations(&mounts);
        let place = |path: &str| destinations.iter().position(|destination| destination == path).unwrap();
        assert!(place("/sys") < place("/etc") && place("/etc") < place("/etc/hosts"), "{destinations:?}");
        assert!(place("/etc/hosts") < place("/etc/deep/volume"), "{destinations:?}");
        assert!(place("/sys") < place("/sys/fs/cgroup"), "{destinations:?}");
        assert_eq!(destinations.iter().filter(|path| *path == "/sys/fs/cgroup").count(), 1);
        let cgroup = &mounts[place("/sys/fs/cgroup")];
        assert!(cgroup.source().as_ref().unwrap().starts_with("/run/isopod/scratch/c1"));
    }
}
