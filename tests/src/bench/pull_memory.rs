//! The most memory that a daemon and the converters it starts have at once while something is done.
//!
//! The daemon is put into a control group that its children are born in, and the private memory (`RssAnon`) of all processes there is
//! summed up again and again. The page cache is in neither side's figure: neither the layers that are written, nor the
//! programs' own code, which the node's tmpfs has once.

use super::side::Side;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Between two looks, each of which takes about a millisecond from what is measured.
const INTERVAL: Duration = Duration::from_millis(50);

/// Does the work; MiB at most meanwhile, and what came of it.
pub fn peak_of<T>(side: &Side<'_>, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let group = group_of(side)?;
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watching = scope.spawn(move || watch(&group, &is_done));
        let outcome = work();
        drop(done);
        let peak = watching.join().ok().context("the thread that looks at memory panicked")??;
        Ok((peak, outcome?))
    })
}

/// The daemon's own control group, made at the first call.
fn group_of(side: &Side<'_>) -> Result<PathBuf> {
    let group = Path::new("/sys/fs/cgroup").join(format!("bench-daemon-{}", side.name));
    fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
    let procs = group.join("cgroup.procs");
    fs::write(&procs, side.daemon.to_string())
        .with_context(|| format!("cannot write {}", procs.display()))?;
    Ok(group)
}

fn watch(group: &Path, is_done: &mpsc::Receiver<()>) -> Result<f64> {
    let mut peak: f64 = 0.0;
    loop {
        peak = peak.max(private_mib(group)?);
        if is_done.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Disconnected) {
            return Ok(peak);
        }
    }
}

fn private_mib(group: &Path) -> Result<f64> {
    let procs = group.join("cgroup.procs");
    let pids = fs::read_to_string(&procs).with_context(|| format!("cannot read {}", procs.display()))?;
    // one that has ended meanwhile has no memory
    let statuses = pids.lines().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    Ok(statuses.map(|status| private_kib(&status)).sum::<f64>() / 1024.0)
}

/// Nothing for a process that is about to end.
fn private_kib(status: &str) -> f64 {
    let figure = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok());
    figure.unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_of_all_processes_of_the_group_is_summed_up() {
        let group = tempfile::tempdir().unwrap();
        let one = private_kib(&fs::read_to_string("/proc/self/status").unwrap());
        assert!(one > 0.0);
        let own = std::process::id();
        fs::write(group.path().join("cgroup.procs"), format!("{own}\n{own}\n")).unwrap();
        assert!(private_mib(group.path()).unwrap() > 1.5 * one / 1024.0);
    }

    #[test]
    fn process_that_has_ended_counts_nothing() {
        assert_eq!(private_kib("Name:\tmkfs.erofs\nState:\tZ (zombie)\n"), 0.0);
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.procs"), format!("{}\n", i32::MAX)).unwrap();
        assert_eq!(private_mib(group.path()).unwrap(), 0.0);
    }

    #[test]
    fn what_was_there_once_is_the_peak() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        let (done, is_done) = mpsc::channel();
        drop(done);
        assert!(watch(group.path(), &is_done).unwrap() > 0.0);
    }
}
