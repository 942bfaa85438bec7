//! The host's cgroups of pods, cgroup v2 only: one directory `isopod-ID` below the parent that kubelet names, which holds
//! the pod's VMM and whatever else works for it, so that kubelet's accounting and limits see the pod's true cost. Those of
//! templates, which no pod pays for, are called `isopod-template-NAME`, and that of the converters of image layers
//! `isopod-converters`.
//!
//! Called by `sandbox`, by `hypervisor` for templates, and by `serve` for converters. It must not touch the parent: that is kubelet's.

use crate::cpu_list::CpuList;
use crate::oom_score;
use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Begin of the names of all our cgroups.
pub const PREFIX: &str = "isopod-";

/// What follows [`PREFIX`] in the names of those of templates. No sandbox's id begins like this, see
/// [`is_reserved`].
const TEMPLATE: &str = "template-";

/// What follows [`PREFIX`] in the name of that of converters.
const CONVERTERS: &str = "converters";

/// The share of processors of converters together (`cpu.weight`): a tenth of what a group has by itself, so
/// that pods and what serves them come first. It is not the least that there is: pods that take all
/// processors must not keep those from starting that wait for their image, and a converter that makes its
/// jail holds locks of the kernel that the daemon waits for.
const CONVERTERS_WEIGHT: u32 = 10;

/// Controllers that a pod's accounting needs.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// The controller of a pod's place on the node, turned on for pods that have one.
const PLACE: &str = "cpuset";

/// What of the node a pod may be confined to: the file of the cgroup, and where the kernel lists what is there.
const CPUS: (&str, &str) = ("cpuset.cpus", "/sys/devices/system/cpu/online");
const MEMS: (&str, &str) = ("cpuset.mems", "/sys/devices/system/node/online");

/// How often, and after which pauses, removing a cgroup is tried again while the kernel still lets go of it.
const REMOVE_TRIES: u32 = 40;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The parent is no path below the mount.
    #[error("cgroup parent {0:?} is not a plain path or slice name: it must not hold '..' or empty parts")]
    BadParent(String),
    /// The host has no cgroup v2.
    #[error(
        "{ROOT} is not cgroup v2: Isopod needs it, as Kubernetes does since 1.35; boot the host with \
         systemd.unified_cgroup_hierarchy=1, or mount cgroup2 there"
    )]
    NotV2,
    /// A file or directory of a cgroup.
    #[error("cgroup {path}: cannot {action}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether the host has cgroup v2 where it belongs.
///
/// # Errors
/// [`CgroupError::NotV2`].
pub fn require_v2() -> Result<(), CgroupError> {
    match statfs(ROOT) {
        Ok(stat) if stat.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(()),
        _ => Err(CgroupError::NotV2),
    }
}

/// What a pod has used, by the host's accounting: VMM, guest and all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged, bytes; absent where the memory controller is off.
    pub memory_bytes: Option<u64>,
    /// Of it, file pages that have not been used for long.
    pub inactive_file_bytes: u64,
    /// Of it, anonymous memory: that of the guest.
    pub anonymous_bytes: u64,
    /// Page faults, all and those that read from a disk.
    pub page_faults: u64,
    /// See `page_faults`.
    pub major_page_faults: u64,
    /// The limit of the memory controller, if there is one.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads; absent where the pids controller is off.
    pub pids: Option<u64>,
}

/// The cgroup of a pod, or of a template. It need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCgroup {
    path: PathBuf,
}

/// Whether a sandbox of that id would have the cgroup of something else.
pub fn is_reserved(id: &str) -> bool {
    id.starts_with(TEMPLATE) || id == CONVERTERS
}

impl PodCgroup {
    /// The cgroup of the sandbox `id` below `parent`: a path (`/kubepods/pod1`), or the name of a systemd slice
    /// (`kubepods-pod1.slice`), whose dashes are levels. An empty parent is `root`, which is [`ROOT`] but in tests.
    ///
    /// # Errors
    /// [`CgroupError::BadParent`] where the parent leads out of `root`.
    pub fn new(root: &Path, parent: &str, id: &str) -> Result<Self, CgroupError> {
        let bad = || CgroupError::BadParent(parent.to_owned());
        let mut path = root.to_owned();
        let parts: Vec<&str> = parent.trim_matches('/').split('/').collect();
        if parts != [""] {
            if parts.iter().any(|part| matches!(*part, "" | "." | "..") || part.contains('\0')) {
                return Err(bad());
            }
            match parts.as_slice() {
                [slice] if slice.ends_with(".slice") => path.extend(expand_slice(slice).ok_or_else(bad)?),
                parts => path.extend(parts),
            }
        }
        path.push(format!("{PREFIX}{id}"));
        Ok(Self { path })
    }

    /// The cgroup of a template, at the top of `root`.
    pub fn of_template(root: &Path, name: &str) -> Self {
        Self { path: root.join(format!("{PREFIX}{TEMPLATE}{name}")) }
    }

    /// Makes the cgroup of all converters of image layers, below `parent`, which is as in [`Self::new`], with
    /// their share of processors. `memory` bounds them together, in bytes. It stays while the daemon does and
    /// after it: files that converters wrote are charged to it as long as they are cached, and a cgroup that
    /// is removed lives on in the kernel until they are not.
    ///
    /// # Errors
    /// [`CgroupError::BadParent`]; a cgroup that cannot be made, or bounded because the memory controller is
    /// off.
    pub fn of_converters(root: &Path, parent: &str, memory: Option<u64>) -> Result<Self, CgroupError> {
        let cgroup = Self::new(root, parent, CONVERTERS)?;
        cgroup.create()?;
        cgroup.weigh(CONVERTERS_WEIGHT);
        let limited = cgroup.limit_memory(memory);
        // where nothing is to be bounded, there is nothing to miss
        if memory.is_some() { limited.map(|()| cgroup) } else { Ok(cgroup) }
    }

    /// Bounds the memory of all processes in it together, or lifts the bound.
    fn limit_memory(&self, bytes: Option<u64>) -> Result<(), CgroupError> {
        let limit = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        // Opened and not made: without the controller there is no such file.
        let file = OpenOptions::new().write(true).open(self.path.join("memory.max"));
        let limited = file.and_then(|mut file| file.write_all(limit.as_bytes()));
        limited.map_err(self.failed("limit its memory"))
    }

    /// Sets its share of processors beside the groups of its parent, if there is a controller for that: 1 is
    /// the least, 10000 the most, 100 what a group has by itself.
    pub fn weigh(&self, weight: u32) {
        if let Err(error) = fs::write(self.path.join("cpu.weight"), weight.to_string()) {
            tracing::debug!(cgroup = %self.path.display(), %error, weight, "it has the weight of all others");
        }
    }

    /// Processes in it. One that does not exist has none.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        match fs::read_to_string(self.path.join("cgroup.procs")) {
            Ok(listed) => Ok(listed.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(self.failed("list its processes")(error)),
        }
    }

    /// Has all threads of the pod, those of its virtual CPUs first of all, run on these CPUs of the node, and its memory come
    /// from these memory nodes; none is any. What the node does not have is left out, and where it has none of a set, the
    /// set confines nothing: kubelet gives out only what there is. A thread that comes later is confined with the others, and
    /// so is the pod while no daemon runs.
    pub fn place(&self, cpus: Option<CpuList>, mems: Option<CpuList>) {
        for ((file, there), set) in [(CPUS, cpus), (MEMS, mems)] {
            let there = || CpuList::of_node(Path::new(there)).unwrap_or_default();
            let wanted = set.map_or_else(String::new, |set| set.intersection(&there()).to_string());
            self.confine(file, &wanted);
        }
    }

    /// Gives all of its processes this `oom_score_adj`, see [`oom_score`]. A number that has become another
    /// process's is not written to: the process is held open before it is looked up once more.
    pub fn set_oom_score(&self, score: i32) {
        let processes = || {
            self.processes().unwrap_or_else(|error| {
                tracing::debug!(cgroup = %self.path.display(), %error, "oom score stays as it is");
                Vec::new()
            })
        };
        for pid in processes() {
            oom_score::set(pid, score, || processes().contains(&pid));
        }
    }

    fn confine(&self, file: &str, wanted: &str) {
        let path = self.path.join(file);
        if !wanted.is_empty() && !path.exists() {
            self.enable_controllers(&[PLACE]);
        }
        let now = match fs::read_to_string(&path) {
            Ok(now) => now.trim().parse::<CpuList>().unwrap_or_default(),
            // No controller for it; only who asked for a place misses it.
            Err(error) => {
                if !wanted.is_empty() {
                    tracing::warn!(path = %path.display(), %error, wanted, "pod runs anywhere on the node");
                }
                return;
            }
        };
        if now == wanted.parse().unwrap_or_default() {
            return;
        }
        // An empty write is none: to lift a set takes its newline.
        match fs::write(&path, format!("{wanted}\n")) {
            Ok(()) => tracing::info!(path = %path.display(), wanted, "pod is placed"),
            Err(error) => tracing::warn!(path = %path.display(), %error, wanted, "pod is not placed"),
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, and its parents where kubelet has not. What is in it never goes to the node's swap.
    ///
    /// # Errors
    /// Where a directory cannot be made.
    pub fn create(&self) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.path).map_err(self.failed("make it"))?;
        if !self.path.join("memory.current").exists() {
            self.enable_controllers(&CONTROLLERS);
        }
        self.forbid_swap();
        Ok(())
    }

    /// A guest that takes more memory than its pod may have is ended, and does not fill the node's swap first
    /// (decision 0009). Without the controller, or without swap in the kernel, there is no such file.
    fn forbid_swap(&self) {
        // Opened and not made: a plain directory, as tests have it, must stay as it is.
        let file = OpenOptions::new().write(true).open(self.path.join("memory.swap.max"));
        match file.and_then(|mut file| file.write_all(b"0")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(cgroup = %self.path.display(), %error, "its memory may go to the node's swap");
            }
            _ => {}
        }
    }

    /// Turns on controllers for the levels above, as far as that is possible: without them a pod runs, and its figures
    /// are fewer. Below kubelet's cgroups they are on already.
    fn enable_controllers(&self, controllers: &[&str]) {
        let above: Vec<&Path> = self.path.ancestors().skip(1).take_while(|p| p.starts_with(ROOT)).collect();
        for directory in above.iter().rev() {
            for controller in controllers {
                if let Err(error) =
                    fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"))
                {
                    tracing::debug!(cgroup = %directory.display(), controller, %error, "controller stays off");
                }
            }
        }
    }

    /// Kills all processes in it. One that does not exist is no error.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&self) -> Result<(), CgroupError> {
        // Opened and not made: a plain directory, as tests have it, must stay as it is.
        let file = OpenOptions::new().write(true).open(self.path.join("cgroup.kill"));
        match file.and_then(|mut file| file.write_all(b"1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("kill it")(error)),
            _ => Ok(()),
        }
    }

    /// Kills what is in it and removes it. One that does not exist is no error.
    ///
    /// # Errors
    /// Where it stays, after some tries.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let mut killed = false;
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
                Err(error) => return Err(self.failed("remove it")(error)),
            }
            if !killed {
                self.kill()?;
                killed = true;
            }
            tokio::time::sleep(REMOVE_PAUSE).await;
        }
        Err(self.failed("remove it")(io::ErrorKind::ResourceBusy.into()))
    }

    /// What has been used in it.
    ///
    /// # Errors
    /// Where it does not exist.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        let read = |name| fs::read_to_string(self.path.join(name));
        let cpu = read("cpu.stat").map_err(self.failed("read its cpu.stat"))?;
        let number = |name| read(name).ok().and_then(|text| text.trim().parse().ok());
        let memory = read("memory.stat").unwrap_or_default();
        Ok(Usage {
            cpu_ns: field(&cpu, "usage_usec").saturating_mul(1000),
            memory_bytes: number("memory.current"),
            inactive_file_bytes: field(&memory, "inactive_file"),
            anonymous_bytes: field(&memory, "anon"),
            page_faults: field(&memory, "pgfault"),
            major_page_faults: field(&memory, "pgmajfault"),
            // "max" is no number: no limit.
            memory_limit_bytes: number("memory.max"),
            pids: number("pids.current"),
        })
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> CgroupError {
        move |source| CgroupError::Io { path: self.path.clone(), action, source }
    }
}

/// All cgroups of pods below `root`, with their sandbox ids.
///
/// # Errors
/// Where the tree cannot be read.
pub fn find_all(root: &Path) -> Result<Vec<(String, PodCgroup)>, CgroupError> {
    let mut found = Vec::new();
    walk(root, &mut found)?;
    found.retain(|(id, _)| !is_reserved(id));
    Ok(found)
}

/// All cgroups of templates at the top of `root`, with their names.
///
/// # Errors
/// Where it cannot be read.
pub fn find_templates(root: &Path) -> Result<Vec<(String, PodCgroup)>, CgroupError> {
    let failed = |source| CgroupError::Io { path: root.to_owned(), action: "list it", source };
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_prefix(TEMPLATE).map(str::to_owned));
        found.extend(name.map(|name| (name, PodCgroup { path: entry.path() })));
    }
    Ok(found)
}

fn walk(directory: &Path, found: &mut Vec<(String, PodCgroup)>) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Io { path: directory.to_owned(), action: "list it", source };
    let entries = match fs::read_dir(directory) {
        // It may go while we walk.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        match entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)) {
            Some(id) => found.push((id.to_owned(), PodCgroup { path })),
            None => walk(&path, found)?,
        }
    }
    Ok(())
}

/// The number beside `key` in a file of `key number` lines; 0 where it is missing.
fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The directories of a slice: `a-b.slice` lies in `a.slice` (systemd.slice(5)). `-.slice` is the root.
fn expand_slice(name: &str) -> Option<Vec<String>> {
    let stem = name.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(Vec::new());
    }
    let mut levels: Vec<String> = Vec::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return None;
        }
        prefix.push_str(part);
        levels.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_is_placed_where_the_node_has_something_and_let_go_again() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = PodCgroup { path: root.path().to_owned() };
        let list = |text: &str| Some(text.parse().unwrap());
        let file = root.path().join("cpuset.cpus");
        let placed = || fs::read_to_string(&file).unwrap().trim().to_owned();
        cgroup.place(list("0"), None);
        assert!(!file.exists(), "no controller, no file");
        fs::write(&file, "\n").unwrap();
        cgroup.place(list("0,60000-60003"), None);
        assert_eq!(placed(), "0");
        cgroup.place(list("60000"), None);
        assert_eq!(placed(), "", "none of them is on this node");
        cgroup.place(list("0"), None);
        cgroup.place(None, None);
        assert_eq!(placed(), "");
    }

    #[test]
    fn pod_has_none_of_the_nodes_swap() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = PodCgroup::new(root.path(), "", "1").unwrap();
        let file = cgroup.path().join("memory.swap.max");
        cgroup.create().unwrap();
        assert!(!file.exists(), "no controller, no file");
        fs::write(&file, "9").unwrap();
        cgroup.create().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "0");
    }

    #[test]
    fn processes_of_a_pod_get_its_oom_score() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = PodCgroup { path: root.path().to_owned() };
        cgroup.set_oom_score(1000);
        let mut child = std::process::Command::new("/usr/bin/sleep").arg("60").spawn().unwrap();
        let score =
            || fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id())).unwrap().trim().to_owned();
        let before = score();
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        cgroup.set_oom_score(987);
        assert_eq!(score(), before, "it is in no cgroup of a pod");
        fs::write(root.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        cgroup.set_oom_score(987);
        assert_eq!(score(), "987");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn path(parent: &str) -> Option<String> {
        let cgroup = PodCgroup::new(Path::new(ROOT), parent, "1").ok()?;
        Some(cgroup.path().strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn path_parent_is_taken_as_it_is() {
        assert_eq!(path("/kubepods/besteffort/pod1").unwrap(), "kubepods/besteffort/pod1/isopod-1");
        assert_eq!(path("").unwrap(), "isopod-1");
        assert_eq!(path("/").unwrap(), "isopod-1");
    }

    #[test]
    fn slice_name_becomes_its_levels() {
        assert_eq!(
            path("kubepods-burstable-pod_1.slice").unwrap(),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_1.slice/isopod-1"
        );
        assert_eq!(path("/system.slice").unwrap(), "system.slice/isopod-1");
        assert_eq!(path("-.slice").unwrap(), "isopod-1");
    }

    #[test]
    fn usage_reads_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = PodCgroup::new(directory.path(), "", "1").unwrap();
        assert!(cgroup.usage().is_err());
        fs::create_dir(cgroup.path()).unwrap();
        let write = |name, text| fs::write(cgroup.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 1500\nuser_usec 1000\n");
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 100\ninactive_file 7\ninactive_file_other 9\n");
        let expected = Usage {
            cpu_ns: 1_500_000,
            memory_bytes: Some(4096),
            inactive_file_bytes: 7,
            anonymous_bytes: 100,
            ..Usage::default()
        };
        assert_eq!(cgroup.usage().unwrap(), expected);
    }

    #[tokio::test]
    async fn removing_what_is_not_there_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = PodCgroup::new(directory.path(), "a", "1").unwrap();
        cgroup.remove().await.unwrap();
        cgroup.kill().unwrap();
        cgroup.create().unwrap();
        cgroup.remove().await.unwrap();
        assert!(!cgroup.path().exists());
    }

    #[test]
    fn cgroups_of_templates_are_told_from_those_of_pods() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (pod, template) = (PodCgroup::new(root, "a/b", "1").unwrap(), PodCgroup::of_template(root, "2"));
        pod.create().unwrap();
        template.create().unwrap();
        fs::write(template.path().join("cpu.weight"), "100").unwrap();
        template.weigh(1);
        assert_eq!(fs::read_to_string(template.path().join("cpu.weight")).unwrap(), "1");
        assert!(template.processes().unwrap().is_empty());
        fs::write(template.path().join("cgroup.procs"), "7\n8\n").unwrap();
        assert_eq!(template.processes().unwrap(), [7, 8]);
        assert_eq!(find_all(root).unwrap(), [("1".to_owned(), pod)]);
        assert_eq!(find_templates(root).unwrap(), [("2".to_owned(), template)]);
    }

    #[test]
    fn memory_of_converters_is_bounded_where_there_is_a_controller() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let made = |memory| PodCgroup::of_converters(root, "/system.slice", memory);
        let error = made(Some(1 << 30)).unwrap_err().to_string();
        assert!(error.contains("cannot limit its memory"), "{error}");
        let converters = made(None).unwrap();
        assert_eq!(converters.path(), root.join("system.slice/isopod-converters"));
        let limit = || fs::read_to_string(converters.path().join("memory.max")).unwrap();
        fs::write(converters.path().join("memory.max"), "").unwrap();
        made(Some(1 << 30)).unwrap();
        assert_eq!(limit(), "1073741824");
        fs::write(converters.path().join("memory.max"), "").unwrap();
        made(None).unwrap();
        assert_eq!(limit(), "max", "of an earlier daemon");
        assert_eq!(find_all(root).unwrap(), [], "they are no pod");
    }

    #[test]
    fn converters_weigh_least() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let path = root.join("isopod-converters");
        fs::create_dir(&path).unwrap();
        // what the kernel gives every group
        fs::write(path.join("cpu.weight"), "100").unwrap();
        PodCgroup::of_converters(root, "", None).unwrap();
        let weight: u32 = fs::read_to_string(path.join("cpu.weight")).unwrap().parse().unwrap();
        assert!((1..100).contains(&weight), "{weight}");
    }

    #[test]
    fn parent_that_leaves_the_mount_is_refused() {
        for parent in ["../x", "a/../b", "a//b", "a--b.slice", "./a"] {
            assert!(path(parent).is_none(), "{parent}");
        }
    }
}
