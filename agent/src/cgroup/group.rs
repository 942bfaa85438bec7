//! One container's cgroup: made and limited before its process exists, killed and removed after it.
//!
//! Its processes, execs among them, live in a group below it, `own` ([`super::layout`]). Programs look for
//! their limits in the group that `/proc/self/cgroup` names, so each limit is written to both; what holds,
//! and what is counted, killed and removed, is the upper one with all below. Groups below `own` are the
//! container's own business (systemd, Docker in Docker).

use super::devices::{self, DevicesError};
use super::layout;
use super::limits::{Limit, LimitsError, limits};
use super::tasks;
use crate::directory;
use crate::event_loop::blocking;
use crate::id::Id;
use crate::sys;
use oci_spec::runtime::LinuxResources;
use rustix::fs::{AtFlags, CWD, FileType};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a killed group may take to become empty. Processes in an uninterruptible wait are what takes
/// long.
const EMPTY_DEADLINE: Duration = Duration::from_secs(10);

/// Pause between two looks at a group that is being emptied.
const EMPTY_POLL: Duration = Duration::from_millis(2);

/// Most groups below a container's upper one. Nested Kubernetes nodes have about a thousand. Each group takes
/// one of the 65,535 numbers that the kernel has for groups with memory, and a moment of the container's
/// removal.
const MAX_GROUPS: u32 = 2048;

/// How deep they may be nested.
const MAX_DEPTH: u32 = 64;

/// A cgroup that could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A directory or file of the tree.
    #[error("cgroup file {path} cannot be {action}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not take a limit.
    #[error("limit {file} = {value} is refused by the guest's kernel")]
    Refused {
        /// File of the cgroup.
        file: String,
        /// Value that was written.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Limits that make no sense.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// Device rules that make no sense.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// Killed processes that do not go.
    #[error("cgroup {} still holds processes {} s after they were killed", .0.display(), EMPTY_DEADLINE.as_secs())]
    NotEmpty(PathBuf),
    /// More groups than could be removed in time.
    #[error("cgroup {} has groups left after {} s of removing them; remove the container again", .0.display(), EMPTY_DEADLINE.as_secs())]
    Late(PathBuf),
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::File { path, action, source }
}

/// The cgroup of one container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group of a container; it need not exist.
    pub fn of_container(id: &Id) -> Cgroup {
        Cgroup { path: layout::container(id) }
    }

    /// The directory of the group in which its processes are born.
    pub fn own(&self) -> PathBuf {
        self.path.join(layout::OWN)
    }

    /// Makes both groups. One that exists is left from nobody: ids are not used twice at a time.
    pub fn make(&self) -> Result<(), CgroupError> {
        make_group(&self.path)?;
        layout::hand_down(&self.path).map_err(failed(&self.path, "prepared for groups below"))?;
        self.bound()?;
        make_group(&self.own())
    }

    /// Sets the bounds that hold for a container which asks for none. They are in the upper group alone: to
    /// programs that look for limits they are none.
    fn bound(&self) -> Result<(), CgroupError> {
        let of_tasks = |(path, source)| CgroupError::File { path, action: "read or written", source };
        tasks::bound().map_err(of_tasks)?;
        let tasks = tasks::of_one_container().map_err(of_tasks)?;
        let bounds = [
            ("pids.max", tasks),
            ("cgroup.max.descendants", MAX_GROUPS.into()),
            ("cgroup.max.depth", MAX_DEPTH.into()),
        ];
        bounds.into_iter().try_for_each(|(file, value)| {
            let path = self.path.join(file);
            fs::write(&path, value.to_string()).map_err(failed(&path, "written"))
        })?;
        self.forbid_huge_pages()
    }

    /// Huge pages are not counted as memory: a container that may have as many as the kernel makes, for
    /// others that have a limit of them, would get around its limit of memory.
    fn forbid_huge_pages(&self) -> Result<(), CgroupError> {
        for file in fs::read_dir(&self.path).map_err(failed(&self.path, "listed"))? {
            let path = file.map_err(failed(&self.path, "listed"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // Of pages and of reservations, for each size that the kernel has.
            if name.starts_with("hugetlb.") && name.ends_with(".max") {
                fs::write(&path, "0").map_err(failed(&path, "written"))?;
            }
        }
        Ok(())
    }

    /// Restricts which devices its processes may use, for the life of the group.
    pub fn restrict_devices(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        if let Some(program) = devices::program(resources.devices().as_deref().unwrap_or_default())? {
            let attached = fs::File::open(&self.path)
                .and_then(|directory| sys::bpf::attach_device_program(directory.as_fd(), &program));
            attached.map_err(failed(&self.path, "given device rules"))?;
        }
        Ok(())
    }

    /// Sets limits, all or none: when one is refused, those before it are set back. The group below gets
    /// them, too, as far as it takes them: what root of the container has written there can stand in their
    /// way.
    pub fn limit(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let cpu_max = fs::read_to_string(self.path.join("cpu.max")).unwrap_or_default();
        let mut undo: Vec<(PathBuf, String)> = Vec::new();
        let limits = limits(resources, &cpu_max)?;
        for limit in &limits {
            match write(&self.path, limit) {
                Ok(Some(old)) => undo.push(old),
                Ok(None) => {}
                Err(error) => {
                    for (path, old) in undo.iter().rev() {
                        // A value that was accepted once; if not now, the first error is still the one to
                        // tell.
                        let _ = fs::write(path, old);
                    }
                    return Err(error);
                }
            }
        }
        for limit in &limits {
            let _ = write(&self.own(), limit);
        }
        Ok(())
    }

    /// Kills every process in the group and below. A group that is gone succeeds.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.kill");
        absent_is_done(fs::write(&path, "1")).map_err(failed(&path, "written"))
    }

    /// Kills what is left in the group and removes it with all groups below. A group that is gone succeeds.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + EMPTY_DEADLINE;
        loop {
            self.kill()?;
            if !self.populated()? {
                let path = self.path.clone();
                // A container may have made many groups, and the kernel takes its time for each.
                match blocking(move || remove_tree(&path, deadline)).await {
                    // A process can still be on its way out, or a fork have escaped the kill before this one.
                    Err(error) if is_in_use(&error) => {}
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        return Err(CgroupError::Late(self.path.clone()));
                    }
                    result => return result.map_err(failed(&self.path, "removed")),
                }
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::NotEmpty(self.path.clone()));
            }
            tokio::time::sleep(EMPTY_POLL).await;
        }
    }

    fn populated(&self) -> Result<bool, CgroupError> {
        let path = self.path.join("cgroup.events");
        match fs::read_to_string(&path) {
            Err(error) if is_gone(&error) => Ok(false),
            events => Ok(counter(&events.map_err(failed(&path, "read"))?, "populated") != 0),
        }
    }

    /// How many of the container's processes the kernel's OOM killer has ended so far. Counted before the
    /// process is killed, so after a process has been collected the figure includes it.
    pub fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        counter(&events, "oom_kill")
    }
}

fn make_group(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, "made")(error)),
        _ => Ok(()),
    }
}

/// Writes one limit to a group; returns the file and its former content, which sets it back.
fn write(group: &Path, limit: &Limit) -> Result<Option<(PathBuf, String)>, CgroupError> {
    let path = group.join(&limit.file);
    let refused =
        |source| CgroupError::Refused { file: limit.file.clone(), value: limit.value.clone(), source };
    let old = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && limit.optional => return Ok(None),
        old => old.map_err(refused)?,
    };
    fs::write(&path, &limit.value).map_err(refused)?;
    // An empty write is none: an emptied cpuset needs its newline.
    let old = if old.trim().is_empty() { "\n".to_owned() } else { old.trim_end().to_owned() };
    Ok(Some((path, old)))
}

/// The value of one line of a flat keyed cgroup file; 0 where it is missing.
fn counter(content: &str, key: &str) -> u64 {
    let mut lines = content.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// Groups are removed from the leaves up; files in them vanish with them. A container may nest them deeper
/// than any path reaches, so only one directory is open at a time, and the way up is its `..`. At the
/// deadline it ends with [`io::ErrorKind::TimedOut`], and another call goes on.
fn remove_tree(path: &Path, deadline: Instant) -> io::Result<()> {
    let mut here = match directory::open(CWD, path).map_err(io::Error::from) {
        Err(error) if is_gone(&error) => return Ok(()),
        opened => opened?,
    };
    let mut depth = 0u64;
    loop {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let Some(name) = first_group(&here)? else {
            if depth == 0 {
                return absent_is_done(fs::remove_dir(path));
            }
            here = directory::open(&here, "..")?;
            depth -= 1;
            continue;
        };
        let removed = rustix::fs::unlinkat(&here, &name, AtFlags::REMOVEDIR).map_err(io::Error::from);
        match absent_is_done(removed) {
            Err(error) if is_in_use(&error) => {
                let below = directory::open(&here, &name)?;
                if first_group(&below)?.is_none() {
                    // By a process.
                    return Err(error);
                }
                here = below;
                depth += 1;
            }
            removed => removed?,
        }
    }
}

/// Any of the groups right below a group.
fn first_group(group: &OwnedFd) -> io::Result<Option<CString>> {
    Ok(directory::any_entry(group, |kind| kind == FileType::Directory)?)
}

/// Whether a group cannot be removed because of what is in it.
fn is_in_use(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn absent_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { path: directory.path().to_owned() };
        fs::create_dir(cgroup.own()).unwrap();
        for (name, content) in files {
            fs::write(cgroup.path.join(name), content).unwrap();
            fs::write(cgroup.own().join(name), content).unwrap();
        }
        (directory, cgroup)
    }

    fn soon() -> Instant {
        Instant::now() + EMPTY_DEADLINE
    }

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn limits_are_set_back_when_one_is_refused() {
        // No cpu.weight: the kernel would say that there is no such file.
        let (_keep, cgroup) = group(&[("memory.max", "max\n"), ("cpu.max", "max 100000\n")]);
        let asked = resources(r#"{"memory":{"limit":4096},"cpu":{"shares":512}}"#);
        assert!(
            matches!(cgroup.limit(&asked), Err(CgroupError::Refused { file, .. }) if file == "cpu.weight")
        );
        for group in [&cgroup.path, &cgroup.own()] {
            assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap().trim(), "max");
            assert_eq!(fs::read_to_string(group.join("cpu.max")).unwrap(), "max 100000\n");
        }
    }

    #[test]
    fn limit_is_where_no_container_sees_it_and_where_programs_look_for_it() {
        let (_keep, cgroup) = group(&[("memory.max", "max\n"), ("pids.max", "max\n")]);
        // What a container has done to the files that it sees does not matter.
        fs::write(cgroup.own().join("memory.max"), "max\n").unwrap();
        cgroup.limit(&resources(r#"{"memory":{"limit":4096},"pids":{"limit":7}}"#)).unwrap();
        for group in [&cgroup.path, &cgroup.own()] {
            assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap(), "4096");
            assert_eq!(fs::read_to_string(group.join("pids.max")).unwrap(), "7");
        }
    }

    #[test]
    fn container_cannot_refuse_limits_by_what_it_has_written() {
        let files = [("memory.max", "max\n"), ("cpu.weight", "100\n"), ("pids.max", "max\n")];
        let (_keep, cgroup) = group(&files);
        // Stands for a group with cpu.idle, whose weight the kernel refuses to change.
        fs::remove_file(cgroup.own().join("cpu.weight")).unwrap();
        fs::create_dir(cgroup.own().join("cpu.weight")).unwrap();
        let asked = r#"{"memory":{"limit":4096},"cpu":{"shares":1024},"pids":{"limit":7}}"#;
        cgroup.limit(&resources(asked)).unwrap();
        let value = |group: &Path, file| fs::read_to_string(group.join(file)).unwrap();
        for (file, expected) in [("memory.max", "4096"), ("cpu.weight", "100"), ("pids.max", "7")] {
            assert_eq!(value(&cgroup.path, file), expected);
        }
        assert_eq!(
            (value(&cgroup.own(), "memory.max"), value(&cgroup.own(), "pids.max")),
            ("4096".into(), "7".into())
        );
    }

    #[test]
    fn container_has_the_huge_pages_that_it_asked_for_and_no_others() {
        let files = [
            "hugetlb.2MB.max",
            "hugetlb.2MB.rsvd.max",
            "hugetlb.1GB.max",
            "hugetlb.2MB.current",
            "memory.max",
        ];
        let (_keep, cgroup) = group(&files.map(|file| (file, "7\n")));
        cgroup.forbid_huge_pages().unwrap();
        let values =
            || files.map(|file| fs::read_to_string(cgroup.path.join(file)).unwrap().trim().to_owned());
        assert_eq!(values(), ["0", "0", "0", "7", "7"]);
        cgroup.limit(&resources(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#)).unwrap();
        assert_eq!(values(), ["4194304", "4194304", "0", "7", "7"]);
        // An update that says nothing of them changes nothing.
        cgroup.limit(&resources(r#"{"memory":{"limit":4096}}"#)).unwrap();
        assert_eq!(values(), ["4194304", "4194304", "0", "7", "4096"]);
    }

    #[test]
    fn nest_deeper_than_any_path_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir_all(top.join("beside/below")).unwrap();
        fs::create_dir(top.join("nest")).unwrap();
        let name = "g".repeat(250);
        let next = directory.path().join("next");
        for _ in 0..100 {
            fs::create_dir(&next).unwrap();
            fs::rename(top.join("nest"), next.join(&name)).unwrap();
            fs::rename(&next, top.join("nest")).unwrap();
        }
        remove_tree(&top, soon()).unwrap();
        assert!(!top.exists());
        remove_tree(&top, soon()).unwrap();
    }

    #[test]
    fn removal_ends_at_its_deadline_and_goes_on_in_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        for number in 0..100 {
            fs::create_dir_all(top.join(format!("{number}/below"))).unwrap();
        }
        let late = remove_tree(&top, Instant::now()).unwrap_err();
        assert!(late.kind() == io::ErrorKind::TimedOut && top.exists(), "{late}");
        remove_tree(&top, soon()).unwrap();
        assert!(!top.exists());
    }

    /// As many groups as a container may have. The directory is no cgroup, so files of the test keep it until
    /// there are no groups in it; all below it goes.
    #[tokio::test]
    async fn removal_of_many_groups_leaves_the_event_loop_to_others() {
        let (_keep, cgroup) = group(&[("cgroup.events", "populated 0\n")]);
        fs::remove_dir_all(cgroup.own()).unwrap();
        for number in 0..MAX_GROUPS {
            fs::create_dir(cgroup.path.join(number.to_string())).unwrap();
        }
        let left =
            || fs::read_dir(&cgroup.path).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
        let removing = cgroup.clone();
        let removal = tokio::spawn(async move { removing.remove().await });
        let mut turns = 0;
        while left().next().is_some() && !removal.is_finished() {
            turns += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        removal.abort();
        assert_eq!(left().count(), 0);
        assert!(turns > 2, "the event loop came round {turns} times");
    }

    #[test]
    fn group_that_is_in_use_is_told_and_not_tried_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("top/held")).unwrap();
        // A file, which a group of the kernel's takes along, keeps a directory of others as a process keeps a
        // group.
        fs::write(directory.path().join("top/held/file"), "").unwrap();
        assert!(is_in_use(&remove_tree(&directory.path().join("top"), soon()).unwrap_err()));
    }

    #[test]
    fn swap_limit_needs_no_kernel_with_swap() {
        let (_keep, cgroup) = group(&[("memory.max", "max\n")]);
        cgroup.limit(&resources(r#"{"memory":{"limit":4096,"swap":4096}}"#)).unwrap();
        assert_eq!(fs::read_to_string(cgroup.path.join("memory.max")).unwrap(), "4096");
    }

    #[test]
    fn oom_kills_are_counted() {
        let (_keep, cgroup) = group(&[("memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 0\n")]);
        assert_eq!(cgroup.oom_kills(), 1);
        assert_eq!(group(&[]).1.oom_kills(), 0);
    }

    #[tokio::test]
    async fn absent_group_is_removed_already() {
        let cgroup = Cgroup { path: "/nonexistent/group".into() };
        cgroup.kill().unwrap();
        cgroup.remove().await.unwrap();
    }
}
