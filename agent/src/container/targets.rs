//! Finds, or makes, the place of each mount of a container and its working directory in the container's root,
//! before the container library runs.
//!
//! The library makes what is missing as well, but fails where a link of the image leads to nothing, follows
//! others when it writes to `/dev`, and makes no working directory. So each destination becomes one without
//! links here ([`View`] resolves them inside the root), and what was missing is there: parents 0755 of root,
//! a directory or a file as the source is. This runs before the root becomes read-only, as runc's does. No
//! process of the container exists yet; it must not be called when one does.

use crate::storage::view::{self, Content, FileKind, Found, Missing, View, ViewError};
use oci_spec::runtime::{Mount, Spec};
use std::io;
use std::path::{Path, PathBuf};

/// Where the library makes device nodes and links, by paths that it does not resolve.
const DEVICES: &str = "/dev";

/// Where images for systemd have a volume in place of control groups, as these could once not be shared.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Why a container cannot have its mounts or its working directory.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The destination of a mount leads nowhere.
    #[error("mount target")]
    Mount(#[source] ViewError),
    /// The working directory leads nowhere.
    #[error("working directory")]
    WorkingDirectory(#[source] ViewError),
    /// The working directory is something else.
    #[error("working directory {} is not a directory in the image", .0.display())]
    NotDirectory(PathBuf),
    /// A part of the path is a link where files of the kernel's must be at that very path.
    #[error("mount target {} leads by a symbolic link to {}; the image must have a directory there", target.display(), at.display())]
    Link {
        /// The destination.
        target: PathBuf,
        /// Where it leads.
        at: PathBuf,
    },
    /// The whole root would be hidden.
    #[error("mount target {} leads to the root directory itself; name another", .0.display())]
    Root(PathBuf),
    /// A file or directory would be shown in a file system of which nothing is known before the container
    /// runs.
    #[error("mount target {} is in a file system of type {file_system}; name a path outside of it", target.display())]
    InFresh {
        /// The destination.
        target: PathBuf,
        /// The type.
        file_system: String,
    },
    /// A file would be mounted on a directory, or the other way round.
    #[error("mount target {} is a {has} in the image, and a {needs} is to be mounted there", target.display())]
    Kind {
        /// The destination.
        target: PathBuf,
        /// What is there.
        has: &'static str,
        /// What is mounted.
        needs: &'static str,
    },
    /// A mount without source, or with one that is not there.
    #[error("source {} of mount target {} cannot be opened in the guest", path.display(), target.display())]
    Source {
        /// The destination.
        target: PathBuf,
        /// The source.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The root cannot be looked at.
    #[error("root {} cannot be opened", path.display())]
    Unreadable {
        /// The root.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Prepares `root` for the mounts and the working directory of `spec`, and replaces each destination by the
/// place that it leads to.
pub fn prepare(root: &Path, spec: &mut Spec) -> Result<(), TargetError> {
    let unreadable = |source| TargetError::Unreadable { path: root.to_owned(), source };
    let mut view = View::of_root(root).map_err(unreadable)?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let (at, content) = place(&view, mount)?;
        view.mount(&at, content);
        mount.set_destination(at);
    }
    spec.set_mounts(Some(mounts));
    let devices = find(&view, Path::new(DEVICES), Missing::MakeDirectory).map_err(TargetError::Mount)?;
    refuse_links(Path::new(DEVICES), &devices)?;
    match spec.process() {
        Some(process) => make_working_directory(&view, process.cwd()),
        None => Ok(()),
    }
}

/// Where a mount comes to be, and what it shows there.
fn place(view: &View, mount: &Mount) -> Result<(PathBuf, Content), TargetError> {
    let target = mount.destination();
    let content = content(mount)?;
    let (missing, needs) = match content {
        Content::File => (Missing::MakeFile, FileKind::File),
        Content::Directory(_) | Content::Fresh(_) => (Missing::MakeDirectory, FileKind::Directory),
    };
    let found = find(view, target, missing).map_err(TargetError::Mount)?;
    if must_be_plain(mount) {
        refuse_links(target, &found)?;
    }
    if found.path == Path::new("/") {
        return Err(TargetError::Root(target.clone()));
    }
    if let (FileKind::Fresh(file_system), false) = (&found.kind, matches!(content, Content::Fresh(_)))
        && !may_show(view, &found.path)
    {
        return Err(TargetError::InFresh { target: target.clone(), file_system: file_system.clone() });
    }
    let word = |kind: &FileKind| if *kind == FileKind::File { "file" } else { "directory" };
    if !matches!(found.kind, FileKind::Fresh(_)) && found.kind != needs {
        return Err(TargetError::Kind {
            target: target.clone(),
            has: word(&found.kind),
            needs: word(&needs),
        });
    }
    Ok((found.path, content))
}

/// Whether files of the guest's may be shown at a place in a new file system, where the library would follow
/// whatever it meets. Right below an empty one, as at `/dev/shm`, it meets nothing; and the place of control
/// groups is the kernel's own directory for them.
fn may_show(view: &View, at: &Path) -> bool {
    at == Path::new(CONTROL_GROUPS) || at.parent().and_then(|parent| view.fresh_at(parent)) == Some("tmpfs")
}

/// What a mount shows, by the library's rules of which mount is a bind mount.
fn content(mount: &Mount) -> Result<Content, TargetError> {
    let of_type = mount.typ().clone().unwrap_or_default();
    let mut options = mount.options().iter().flatten();
    if of_type != "bind" && !options.any(|option| option == "bind" || option == "rbind") {
        return Ok(Content::Fresh(of_type));
    }
    let path = mount.source().clone().unwrap_or_default();
    let opened = view::open(&path).and_then(|file| Ok((view::kind_of(&file)?, file)));
    match opened {
        Ok((FileKind::Directory, directory)) => Ok(Content::Directory(directory)),
        Ok(_) => Ok(Content::File),
        Err(source) => Err(TargetError::Source { target: mount.destination().clone(), path, source }),
    }
}

/// File systems that programs and the library trust to be where they belong: a link could put them, or what
/// is masked in them, elsewhere.
fn must_be_plain(mount: &Mount) -> bool {
    let of_type = mount.typ().as_deref().unwrap_or_default();
    matches!(of_type, "proc" | "sysfs" | "cgroup" | "cgroup2") || mount.destination() == Path::new(DEVICES)
}

fn refuse_links(target: &Path, found: &Found) -> Result<(), TargetError> {
    if found.links == 0 {
        return Ok(());
    }
    Err(TargetError::Link { target: target.to_owned(), at: found.path.clone() })
}

fn make_working_directory(view: &View, path: &Path) -> Result<(), TargetError> {
    let found = find(view, path, Missing::MakeDirectory).map_err(TargetError::WorkingDirectory)?;
    match found.kind {
        FileKind::File => Err(TargetError::NotDirectory(path.to_owned())),
        // What a new file system has is seen when the process enters it.
        FileKind::Directory | FileKind::Fresh(_) => Ok(()),
    }
}

/// As [`View::find`] where what is missing is made, so that there is always an answer.
fn find(view: &View, path: &Path, missing: Missing) -> Result<Found, ViewError> {
    let nothing = || ViewError::Refused {
        path: path.to_owned(),
        at: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    };
    view.find(path, missing)?.ok_or_else(nothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Case {
        directory: tempfile::TempDir,
    }

    impl Case {
        /// A root beside a file `hosts` and a directory `data` to mount.
        fn new() -> Case {
            let directory = tempfile::tempdir().unwrap();
            for name in ["root/etc", "data"] {
                fs::create_dir_all(directory.path().join(name)).unwrap();
            }
            fs::write(directory.path().join("hosts"), "").unwrap();
            Case { directory }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.directory.path().join(path)
        }

        fn link(&self, path: &str, target: &str) {
            symlink(target, self.path("root").join(path)).unwrap();
        }

        fn bind(&self, source: &str, destination: &str) -> Value {
            json!({ "destination": destination, "type": "bind", "source": self.path(source), "options": ["rbind"] })
        }

        /// Destinations after the preparation.
        fn prepare(&self, mounts: Value, cwd: &str) -> Result<Vec<String>, TargetError> {
            let process = json!({ "cwd": cwd, "args": ["x"], "user": { "uid": 0, "gid": 0 } });
            let spec = json!({ "ociVersion": "1.2.0", "process": process, "mounts": mounts, "linux": {} });
            let mut spec: Spec = serde_json::from_value(spec).unwrap();
            prepare(&self.path("root"), &mut spec)?;
            let mounts = spec.mounts().iter().flatten();
            Ok(mounts.map(|mount| mount.destination().display().to_string()).collect())
        }

        fn refusal(&self, mounts: Value, cwd: &str) -> String {
            let error = self.prepare(mounts, cwd).unwrap_err();
            crate::child::message::with_causes(&error)
        }
    }

    fn fresh(of_type: &str, destination: &str) -> Value {
        json!({ "destination": destination, "type": of_type, "source": of_type })
    }

    #[test]
    fn missing_and_dangling_targets_are_made_by_the_sources_kind() {
        let case = Case::new();
        case.link("etc/hosts", "../run/hosts");
        let mounts = json!([
            case.bind("hosts", "/etc/hosts"),
            case.bind("data", "/srv/data/"),
            fresh("tmpfs", "/tmp")
        ]);
        assert_eq!(case.prepare(mounts, "/").unwrap(), ["/run/hosts", "/srv/data", "/tmp"]);
        assert!(case.path("root/run/hosts").is_file());
        assert!(case.path("root/srv/data").is_dir() && case.path("root/tmp").is_dir());
    }

    #[test]
    fn target_in_an_earlier_mount_is_made_there() {
        let case = Case::new();
        let mounts = json!([
            case.bind("data", "/etc"),
            case.bind("hosts", "/etc/hosts"),
            fresh("proc", "/proc"),
            fresh("tmpfs", "/dev"),
            fresh("devpts", "/dev/pts")
        ]);
        let targets = case.prepare(mounts, "/etc/work").unwrap();
        assert_eq!(targets, ["/etc", "/etc/hosts", "/proc", "/dev", "/dev/pts"]);
        assert!(case.path("data/hosts").is_file() && case.path("data/work").is_dir());
        assert!(!case.path("root/etc/hosts").exists() && !case.path("root/dev/pts").exists());
    }

    #[test]
    fn kernels_file_systems_are_refused_behind_links() {
        for (of_type, path) in [("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "dev")] {
            let case = Case::new();
            case.link(path, "/etc");
            let told = case.refusal(json!([fresh(of_type, &format!("/{path}"))]), "/");
            assert!(told.contains(&format!("/{path} leads by a symbolic link to /etc")), "{told}");
        }
        let case = Case::new();
        case.link("dev", "/etc");
        let told = case.refusal(json!([]), "/");
        assert!(told.contains("/dev leads by a symbolic link"), "without a mount there: {told}");
    }

    #[test]
    fn links_into_the_kernels_file_systems_are_refused() {
        let case = Case::new();
        case.link("etc/hosts", "/proc/self/environ");
        let told = case.refusal(json!([fresh("proc", "/proc"), case.bind("hosts", "/etc/hosts")]), "/");
        assert!(told.contains("/etc/hosts") && told.contains("file system of type proc"), "{told}");
    }

    #[test]
    fn files_are_shown_in_no_file_system_that_is_not_known() {
        let case = Case::new();
        let kernels = [
            fresh("proc", "/proc"),
            fresh("tmpfs", "/dev"),
            fresh("mqueue", "/dev/mqueue"),
            case.bind("data", "/dev/shm"),
            fresh("sysfs", "/sys"),
            fresh("cgroup", "/sys/fs/cgroup"),
        ];
        let with = |target: &str| {
            let mounts: Vec<Value> = kernels.iter().cloned().chain([case.bind("data", target)]).collect();
            Value::from(mounts)
        };
        for (target, of_type) in [
            ("/proc", "proc"),
            ("/dev", "tmpfs"),
            ("/proc/sys", "proc"),
            ("/proc/self/attr", "proc"),
            ("/sys/kernel", "sysfs"),
            ("/sys/fs/cgroup/x", "sysfs"),
            ("/dev/shm/x", "tmpfs"),
            ("/dev/mqueue/x", "tmpfs"),
            ("/dev/x/y", "tmpfs"),
        ] {
            let told = case.refusal(with(target), "/");
            assert!(
                told.contains(&format!("mount target {target} is in a file system of type {of_type}")),
                "{told}"
            );
        }
        for target in ["/dev/x", "/dev/mqueue", "/sys/fs/cgroup", "/data"] {
            assert_eq!(case.prepare(with(target), "/").unwrap().last().unwrap(), target);
        }
    }

    #[test]
    fn root_and_wrong_kinds_are_refused_by_path() {
        let case = Case::new();
        case.link("up", "../..");
        fs::create_dir(case.path("root/etc/hosts")).unwrap();
        fs::write(case.path("root/file"), "").unwrap();
        let told = |source, target| case.refusal(json!([case.bind(source, target)]), "/");
        assert!(told("data", "/up").contains("/up leads to the root directory itself"));
        assert!(told("hosts", "/etc/hosts").contains("/etc/hosts is a directory in the image, and a file"));
        assert!(told("data", "/file").contains("/file is a file in the image, and a directory"));
        assert!(told("absent", "/x").contains("of mount target /x cannot be opened"));
    }

    #[test]
    fn working_directory_is_made_through_links_and_refused_on_files() {
        let case = Case::new();
        case.link("app", "/srv/app");
        fs::write(case.path("root/file"), "").unwrap();
        case.prepare(json!([]), "/app/of/no/layer").unwrap();
        assert!(case.path("root/srv/app/of/no/layer").is_dir());
        assert!(case.refusal(json!([]), "/file").contains("working directory /file is not a directory"));
        assert!(case.refusal(json!([]), "/file/below").contains("needs a directory at /file"));
        case.prepare(json!([fresh("proc", "/proc")]), "/proc/self").unwrap();
    }
}
