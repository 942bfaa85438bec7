//! Usage figures of containers and of the guest: `Stats`.
//!
//! CPU and memory come from the container's cgroup. What a container wrote to its root is counted by walking
//! its upper directory, as the kernel has no quota there: a walk looks at no more than [`MAX_ENTRIES`] files,
//! in directories no deeper than [`MAX_DEPTH`] (then the figure is a lower bound), and is not repeated for
//! [`WALK_EVERY`]. It keeps no names and follows no link, as the container writes meanwhile.

use crate::cgroup::layout;
use crate::clock;
use crate::directory;
use crate::event_loop::blocking;
use crate::id::{Id, IdError};
use crate::lock::locked;
use crate::storage::Storage;
use isopod_protocols::agent::{ContainerStats, StatsRequest, StatsResponse};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Stat};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most files that one walk looks at.
const MAX_ENTRIES: u64 = 50_000;

/// Most directories that one walk has open at a time, each inside the one before.
const MAX_DEPTH: usize = 128;

/// Age at which a walk's result is taken again.
const WALK_EVERY: Duration = Duration::from_secs(10);

/// Why figures could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The request names no container.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The container is not there or does not run.
    #[error("container {0} does not run, so it has no usage")]
    NotRunning(Id),
    /// A file of the kernel's cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the kernel's does not hold what it should.
    #[error("{} has no figure {key:?}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        key: &'static str,
    },
}

/// Answers `Stats`, of the containers that the request names or of all in `running`. The walks of upper
/// directories block, so they run beside the event loop.
pub async fn collect(
    walks: &Arc<Walks>,
    storage: &Arc<Storage>,
    running: Vec<Id>,
    request: StatsRequest,
) -> Result<StatsResponse, StatsError> {
    let all = request.container_ids.is_empty();
    let wanted = if all { running.clone() } else { parse_ids(&request.container_ids)? };
    if let Some(absent) = wanted.iter().find(|id| !running.contains(id)) {
        return Err(StatsError::NotRunning(absent.clone()));
    }
    let (walks, storage) = (walks.clone(), storage.clone());
    blocking(move || {
        walks.forget_all_but(&running);
        let mut containers = Vec::with_capacity(wanted.len());
        for id in &wanted {
            let writable = walks.writable(id, &storage.upper(id));
            match container(id, writable) {
                Ok(stats) => containers.push(stats),
                // It ended since it was listed.
                Err(StatsError::Unreadable { source, .. }) if all && ended(&source) => {}
                Err(error) => return Err(error),
            }
        }
        let (total, available) = guest_memory()?;
        Ok(StatsResponse {
            containers,
            guest_cpu_usage_ns: cpu_usage_ns(Path::new(layout::ROOT))?,
            guest_memory_total_bytes: total,
            guest_memory_available_bytes: available,
        })
    })
    .await
}

fn parse_ids(ids: &[String]) -> Result<Vec<Id>, IdError> {
    ids.iter().map(|id| Id::parse("container_ids", id)).collect()
}

fn ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Figures of one container. Working set and resident memory as kubelet and cAdvisor define them.
fn container(id: &Id, writable: Writable) -> Result<ContainerStats, StatsError> {
    let group = layout::container(id);
    let usage = number(&group, "memory.current")?;
    let memory = Keyed::read(&group, "memory.stat")?;
    Ok(ContainerStats {
        container_id: id.as_str().to_owned(),
        timestamp_ns: clock::now_ns(),
        cpu_usage_ns: cpu_usage_ns(&group)?,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(memory.get("inactive_file")?),
        memory_rss_bytes: memory.get("anon")?,
        memory_limit_bytes: limit(&read(&group, "memory.max")?),
        page_faults: memory.get("pgfault")?,
        major_page_faults: memory.get("pgmajfault")?,
        pids: number(&group, "pids.current")?,
        writable_bytes: writable.bytes,
        writable_inodes: writable.inodes,
        // A kernel without swap has no such file.
        swap_usage_bytes: number(&group, "memory.swap.current").unwrap_or(0),
    })
}

fn cpu_usage_ns(group: &Path) -> Result<u64, StatsError> {
    Ok(Keyed::read(group, "cpu.stat")?.get("usage_usec")?.saturating_mul(1000))
}

/// Total and available memory of the guest, bytes.
fn guest_memory() -> Result<(u64, u64), StatsError> {
    let memory = Keyed::read(Path::new("/proc"), "meminfo")?;
    Ok((memory.get("MemTotal")? * 1024, memory.get("MemAvailable")? * 1024))
}

/// A limit file; 0 where there is no limit.
fn limit(text: &str) -> u64 {
    // "max"
    text.trim().parse().unwrap_or(0)
}

fn number(group: &Path, file: &'static str) -> Result<u64, StatsError> {
    let text = read(group, file)?;
    text.trim().parse().map_err(|_| StatsError::Malformed { path: group.join(file), key: file })
}

fn read(group: &Path, file: &str) -> Result<String, StatsError> {
    let path = group.join(file);
    fs::read_to_string(&path).map_err(|source| StatsError::Unreadable { path, source })
}

/// A file of lines that are a key and a number: `cpu.stat`, `memory.stat`, `/proc/meminfo`.
struct Keyed {
    path: PathBuf,
    text: String,
}

impl Keyed {
    fn read(directory: &Path, file: &str) -> Result<Keyed, StatsError> {
        Ok(Keyed { path: directory.join(file), text: read(directory, file)? })
    }

    fn get(&self, key: &'static str) -> Result<u64, StatsError> {
        self.text
            .lines()
            .find_map(|line| {
                let mut words = line.split_whitespace();
                let found = words.next()?.trim_end_matches(':') == key;
                found.then(|| words.next().map(u64::from_str))?
            })
            .and_then(Result::ok)
            .ok_or_else(|| StatsError::Malformed { path: self.path.clone(), key })
    }
}

/// What a container wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Writable {
    bytes: u64,
    inodes: u64,
}

/// The results of walks, kept for a while.
#[derive(Debug, Default)]
pub struct Walks {
    results: Mutex<HashMap<Id, (Instant, Writable)>>,
}

impl Walks {
    fn writable(&self, id: &Id, upper: &Path) -> Writable {
        let mut results = locked(&self.results);
        match results.get(id) {
            Some((taken, writable)) if taken.elapsed() < WALK_EVERY => *writable,
            _ => {
                let writable = walk(upper, MAX_ENTRIES);
                results.insert(id.clone(), (Instant::now(), writable));
                writable
            }
        }
    }

    fn forget_all_but(&self, running: &[Id]) {
        let mut results = locked(&self.results);
        results.retain(|id, _| running.contains(id));
    }
}

/// Blocks and inodes below a directory. What vanishes during the walk, or cannot be reached, is not counted.
fn walk(top: &Path, max_entries: u64) -> Writable {
    let mut total = Writable::default();
    let mut open: Vec<Dir> = directory::open(CWD, top).and_then(Dir::new).into_iter().collect();
    while let Some(innermost) = open.last_mut() {
        let Some(entry) = innermost.read() else {
            open.pop();
            continue;
        };
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if directory::is_dots(name) {
            continue;
        }
        let Ok(here) = innermost.fd() else { continue };
        // Of the entry itself, never of what a link points at.
        let Ok(stat) = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        total.inodes += 1;
        total.bytes += bytes_of_one_name(&stat, is_directory);
        if total.inodes >= max_entries {
            return total;
        }
        if is_directory
            && let Ok(below) = directory::open(here, name).and_then(Dir::new)
            && open.len() < MAX_DEPTH
        {
            open.push(below);
        }
    }
    total
}

/// A file of several names is met several times, or lies partly outside: each name has its share.
fn bytes_of_one_name(stat: &Stat, is_directory: bool) -> u64 {
    let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if is_directory { bytes } else { bytes / stat.st_nlink.max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{UsageWho, getrusage};
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    fn keyed(text: &str) -> Keyed {
        Keyed { path: "/test".into(), text: text.to_owned() }
    }

    #[test]
    fn figures_are_found_by_their_whole_key() {
        let stat = keyed("anon 4096\nanon_thp 8192\ninactive_file 12\npgfault 5\n");
        assert_eq!(stat.get("anon").unwrap(), 4096);
        assert_eq!(stat.get("inactive_file").unwrap(), 12);
        assert_eq!(keyed("MemTotal:  1024 kB\n").get("MemTotal").unwrap(), 1024);
    }

    #[test]
    fn missing_figure_names_file_and_key() {
        let error = keyed("anon\nfile x\n").get("file").unwrap_err().to_string();
        assert!(error.contains("/test") && error.contains("file"), "{error}");
        assert!(keyed("anon\n").get("anon").is_err());
    }

    #[test]
    fn no_limit_is_zero() {
        assert_eq!((limit("max\n"), limit("1048576\n")), (0, 1 << 20));
    }

    #[test]
    fn walk_counts_blocks_and_follows_no_link() {
        let upper = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("large"), vec![1; 1 << 20]).unwrap();
        fs::create_dir(upper.path().join("etc")).unwrap();
        fs::write(upper.path().join("etc/file"), vec![1; 8192]).unwrap();
        symlink(outside.path(), upper.path().join("link")).unwrap();
        let found = walk(upper.path(), 100);
        assert_eq!(found.inodes, 3);
        assert!((8192..1 << 19).contains(&found.bytes), "{found:?}");
    }

    #[test]
    fn walk_of_a_huge_tree_stops() {
        let upper = tempfile::tempdir().unwrap();
        for n in 0..20 {
            fs::write(upper.path().join(n.to_string()), "").unwrap();
        }
        assert_eq!(walk(upper.path(), 10).inodes, 10);
    }

    #[test]
    fn walk_of_long_names_keeps_few_bytes() {
        let upper = tempfile::tempdir().unwrap();
        for n in 0..2000 {
            fs::create_dir(upper.path().join(format!("{n:0>250}"))).unwrap();
        }
        // Those of this thread alone; the names and the directory's take more.
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let before = faults();
        assert_eq!(walk(upper.path(), MAX_ENTRIES).inodes, 2000);
        assert!(faults() - before < 64, "{} pages were taken", faults() - before);
    }

    #[test]
    fn walk_ends_at_a_depth_and_goes_on_beside_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (upper, next) = (scratch.path().join("upper"), scratch.path().join("next"));
        fs::create_dir_all(upper.join("d")).unwrap();
        // Built from below, as no path reaches the bottom.
        let name = "d".repeat(250);
        for _ in 1..MAX_DEPTH + 50 {
            fs::create_dir(&next).unwrap();
            fs::rename(upper.join("d"), next.join(&name)).unwrap();
            fs::rename(&next, upper.join("d")).unwrap();
        }
        fs::write(upper.join("beside"), "").unwrap();
        assert_eq!(walk(&upper, MAX_ENTRIES).inodes, MAX_DEPTH as u64 + 1);
    }

    #[test]
    fn walk_of_a_missing_tree_is_empty() {
        assert_eq!(walk(Path::new("/does/not/exist"), 10), Writable::default());
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(text: String) {
            let _ = (keyed(&text).get("anon"), limit(&text));
        }
    }
}
