//! What pods that do nothing cost the node: `idle_pod_memory`, `daemon_memory`.
//!
//! A pod's memory is the proportional set size of all its processes on the host. With Isopod that is the VMM, and in it the
//! guest with all that runs there; with containerd the shim, the sandbox's process and the containers'.

use super::report::{Clock, Row};
use super::side::Side;
use super::statistics::Samples;
use super::{Counts, containerd, pods};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What is left of a pod's start is done by then, and freed guest memory is given back.
const UNTIL_IDLE: Duration = Duration::from_secs(20);

const KIB_PER_MIB: f64 = 1024.0;

/// One side's figures, in MiB.
struct Memory {
    pods: Samples,
    daemon: f64,
}

/// Starts idle pods on one side, looks, removes them; then on the other.
pub fn measure(sides: &mut [Side<'_>; 2], counts: &Counts) -> Vec<Row> {
    let [ours, peer] = sides.each_mut().map(|side| {
        let memory = side.run("memory of idle pods", |side| of_idle_pods(side, counts.idle))?;
        println!("  {}: pod {} MiB; daemon {:.1} MiB", side.name, memory.pods, memory.daemon);
        Some(memory)
    });
    let row = |name, figure: fn(&Memory) -> Option<f64>| {
        let figures = (ours.as_ref().and_then(figure), peer.as_ref().and_then(figure));
        Row::new((name, "MiB"), figures, containerd::NAME, counts.idle, Clock::Wall)
    };
    vec![
        row("idle_pod_memory", |memory| memory.pods.mean()),
        row("daemon_memory", |memory| Some(memory.daemon)),
    ]
}

fn of_idle_pods(side: &Side<'_>, count: usize) -> Result<Memory> {
    let mut ids = Vec::new();
    for n in 0..count {
        let (pod, _) = pods::start(side, &format!("idle-{n}"))?;
        ids.push((format!("idle-{n}"), pod.id));
    }
    std::thread::sleep(UNTIL_IDLE);
    let measured = ids.iter().map(|(name, id)| pod_mib(side, name, id)).collect::<Result<Samples>>();
    let daemon = resident_mib(side.daemon);
    for (_, id) in &ids {
        side.cri.remove_pod(id)?;
    }
    Ok(Memory { pods: measured?, daemon: daemon? })
}

fn pod_mib(side: &Side<'_>, name: &str, id: &str) -> Result<f64> {
    let cgroup = Path::new("/sys/fs/cgroup").join(side.cgroup_parent().trim_start_matches('/')).join(name);
    let mut processes = BTreeSet::new();
    in_cgroup(&cgroup, &mut processes)?;
    named(id, &mut processes)?;
    let mut sum = 0.0;
    for pid in processes {
        sum += proportional_mib(pid)?;
    }
    ensure!(sum > 0.0, "pod {id} has no process");
    Ok(sum)
}

/// Of a process that has memory of its own: KVM's kernel threads are in the pod's control group too.
fn proportional_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    match fs::read_to_string(&path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(0.0),
        Err(error) => Err(error).context(path),
        Ok(text) => mib_of(&text, "Pss:", &path),
    }
}

/// All processes in a control group and below it.
fn in_cgroup(group: &Path, processes: &mut BTreeSet<u32>) -> Result<()> {
    let listed =
        fs::read_to_string(group.join("cgroup.procs")).with_context(|| group.display().to_string())?;
    processes.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            in_cgroup(&entry.path(), processes)?;
        }
    }
    Ok(())
}

/// Processes whose command line has the pod's id as a word: a shim is in its daemon's control group.
fn named(id: &str, processes: &mut BTreeSet<u32>) -> Result<()> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // it may have ended meanwhile
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|&byte| byte == 0).any(|word| word == id.as_bytes()) {
            processes.insert(pid);
        }
    }
    Ok(())
}

fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    mib_of(&fs::read_to_string(&path).with_context(|| path.clone())?, "VmRSS:", &path)
}

/// The figure in a line `NAME 123 kB` of a file of /proc.
fn mib_of(text: &str, name: &str, path: &str) -> Result<f64> {
    let kib = field_kib(text, name).with_context(|| format!("{path} has no line {name}"))?;
    Ok(kib / KIB_PER_MIB)
}

fn field_kib(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_is_found_by_its_whole_name() {
        let text = "SwapPss:   9 kB\nPss_Dirty:  7 kB\nPss:   2048 kB\n";
        assert_eq!(field_kib(text, "Pss:"), Some(2048.0));
        assert_eq!(field_kib(text, "Rss:"), None);
    }

    #[test]
    fn own_process_has_memory() {
        assert!(resident_mib(std::process::id()).unwrap() > 0.0);
    }
}
