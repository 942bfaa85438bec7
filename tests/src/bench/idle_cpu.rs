//! `idle_cpu`: processor time that pods which do nothing take, in milliseconds per minute.
//!
//! Of all processes of a pod on the host, thread by thread, as the scheduler has it to the nanosecond. With Isopod that is
//! the guest as well: it runs in threads of the VMM.

use super::processes::{self, Pids};
use super::side::Side;
use super::statistics::Samples;
use crate::cri::Pod;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long pods are watched.
const WATCHED: Duration = Duration::from_secs(60);

const NANOSECONDS_PER_MILLISECOND: f64 = 1e6;

/// What a pod's threads had run, in nanoseconds by process and thread, at a moment.
struct Reading {
    at: Instant,
    threads: BTreeMap<(u32, u32), u64>,
}

/// Watches idle pods for a minute; milliseconds per minute of each.
pub fn of_pods(side: &Side<'_>, pods: &[Pod]) -> Result<Samples> {
    let before = read_all(side, pods)?;
    std::thread::sleep(WATCHED);
    let after = read_all(side, pods)?;
    let used: Samples = before.iter().zip(&after).map(|(before, after)| per_minute(before, after)).collect();
    println!("  {}: {used} ms of processor time per minute", side.name);
    Ok(used)
}

fn read_all(side: &Side<'_>, pods: &[Pod]) -> Result<Vec<Reading>> {
    processes::of_pods(side, pods)?.iter().map(read).collect()
}

fn read(pids: &Pids) -> Result<Reading> {
    let mut threads = BTreeMap::new();
    for &pid in pids {
        let tasks = format!("/proc/{pid}/task");
        let Some(listed) = unless_ended(fs::read_dir(&tasks), &tasks)? else { continue };
        for task in listed {
            let Some(task) = unless_ended(task, &tasks)? else { continue };
            let Some(thread) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(ran) = ran(&task.path())? {
                threads.insert((pid, thread), ran);
            }
        }
    }
    Ok(Reading { at: Instant::now(), threads })
}

/// Nanoseconds that a thread has run: the first figure of its `schedstat`.
fn ran(task: &Path) -> Result<Option<u64>> {
    let path = task.join("schedstat").display().to_string();
    let Some(text) = unless_ended(fs::read_to_string(&path), &path)? else { return Ok(None) };
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    first.map(Some).with_context(|| format!("{path} says {text:?}"))
}

/// Nothing of what ended while it was looked at.
fn unless_ended<T>(looked: io::Result<T>, path: &str) -> Result<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error).context(path.to_owned()),
    }
}

/// Milliseconds between two readings, as if they were a minute apart. Threads that began meanwhile count whole; what one ran
/// that ended meanwhile is not known.
fn per_minute(before: &Reading, after: &Reading) -> f64 {
    let ran = |(thread, after): (&(u32, u32), &u64)| {
        after.saturating_sub(before.threads.get(thread).copied().unwrap_or(0))
    };
    let nanoseconds: u64 = after.threads.iter().map(ran).sum();
    let minutes = after.at.duration_since(before.at).as_secs_f64() / 60.0;
    nanoseconds as f64 / NANOSECONDS_PER_MILLISECOND / minutes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, threads: &[((u32, u32), u64)]) -> Reading {
        Reading { at, threads: threads.iter().copied().collect() }
    }

    #[test]
    fn time_is_the_sum_over_threads_also_over_new_ones() {
        let begin = Instant::now();
        let before = reading(begin, &[((1, 1), 5_000_000), ((1, 2), 7_000_000)]);
        let end = begin + Duration::from_secs(60);
        let after = reading(end, &[((1, 1), 6_000_000), ((1, 3), 2_000_000)]);
        assert!((per_minute(&before, &after) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn time_is_told_per_minute_however_long_it_was_watched() {
        let begin = Instant::now();
        let before = reading(begin, &[((1, 1), 0)]);
        let after = reading(begin + Duration::from_secs(120), &[((1, 1), 8_000_000)]);
        assert!((per_minute(&before, &after) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn own_threads_have_run() {
        let own = read(&Pids::from([std::process::id()])).unwrap();
        assert!(own.threads.values().sum::<u64>() > 0);
    }

    #[test]
    fn process_that_has_ended_has_no_threads() {
        // beyond the highest id that Linux gives
        assert!(read(&Pids::from([u32::MAX])).unwrap().threads.is_empty());
    }
}
