//! What idle pods cost the node in memory.
//!
//! A pod's own is the proportional set size of all its processes on the host, with the page tables that the kernel keeps for
//! them. With Isopod that is the VMM, and in it the guest with all that runs there; with containerd the shim, the sandbox's
//! process and the containers'. What there is once for all pods (the daemon; with Isopod the template that guests are copies
//! of) is counted apart, and no page twice: of a template's mapping a pod owns only the pages that it has written to.

use super::processes::{self, Pids};
use super::side::Side;
use super::statistics::Samples;
use crate::cri::Pod;
use anyhow::{Context, Result};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// What is left of a pod's start is done by then, and freed guest memory is given back.
pub const UNTIL_IDLE: Duration = Duration::from_secs(20);

const KIB_PER_MIB: f64 = 1024.0;

/// How /proc calls a mapping of a template, in its begin: the name of a memory file.
const TEMPLATE: &str = "/memfd:isopod-template";

/// Descriptors under which a holder keeps a template's memory and its state.
const HELD: [u32; 2] = [3, 4];

/// One side's figures, in MiB.
pub struct Memory {
    /// Of each pod, without what there is once for all.
    pub own: Samples,
    /// What there is once for all.
    pub shared: Shared,
}

/// `pod p50 3.1 (2.9 to 3.4, n 50); daemon 31.0; templates 40.0 MiB`.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { daemon, templates } = self.shared;
        write!(f, "pod {}; daemon {daemon:.1}; templates {templates:.1} MiB", self.own)
    }
}

/// What a side has once for all its pods, in MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shared {
    /// Resident memory of the daemon.
    pub daemon: f64,
    /// Templates and the processes that hold them.
    pub templates: f64,
}

impl Memory {
    /// Looks at pods that have been idle for [`UNTIL_IDLE`].
    pub fn of(side: &Side<'_>, pods: &[Pod]) -> Result<Self> {
        let own = processes::of_pods(side, pods)?
            .iter()
            .zip(pods)
            .map(|(pids, pod)| Ok(processes_mib(pids)? + guest_tables_mib(&side.cgroup_of(pod.name()?))))
            .collect::<Result<Samples>>()?;
        let shared = Shared { daemon: resident_mib(side.daemon)?, templates: templates_mib(side)? };
        Ok(Self { own, shared })
    }

    /// Of a pod with its share of what there is once for all: the mean.
    pub fn of_a_pod(&self) -> Option<f64> {
        let shared = self.shared.daemon + self.shared.templates;
        Some(self.own.mean()? + shared / self.own.count() as f64)
    }
}

fn templates_mib(side: &Side<'_>) -> Result<f64> {
    let holders = processes::template_holders(side)?;
    let mut sum = processes_mib(&holders)?;
    for (pid, descriptor) in holders.iter().flat_map(|pid| HELD.map(|descriptor| (pid, descriptor))) {
        let path = format!("/proc/{pid}/fd/{descriptor}");
        let held = fs::metadata(&path).with_context(|| path.clone())?;
        // blocks are of 512 bytes, whatever the file system has
        sum += (held.blocks() * 512) as f64 / f64::from(1 << 20);
    }
    Ok(sum)
}

fn processes_mib(pids: &Pids) -> Result<f64> {
    // from zero: the sum of nothing is -0.0
    pids.iter().try_fold(0.0, |sum, &pid| Ok(sum + process_mib(pid)?))
}

/// Nothing for kernel threads, some of which are in a pod's control group: they have no memory of their own.
fn process_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps");
    let mappings = match fs::read_to_string(&path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(0.0),
        read => read.context(path)?,
    };
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(path)?;
    Ok((own_kib(&mappings) + field_kib(&status, "VmPTE:").unwrap_or(0.0)) / KIB_PER_MIB)
}

/// The proportional set size of all mappings; of those of a template only what is no longer the template's.
fn own_kib(smaps: &str) -> f64 {
    let (mut sum, mut counted) = (0.0, "Pss:");
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if !first.ends_with(':') {
            // ADDRESSES MODE OFFSET DEVICE INODE NAME
            let of_template = words.nth(4).is_some_and(|name| name.starts_with(TEMPLATE));
            counted = if of_template { "Anonymous:" } else { "Pss:" };
        } else if first == counted {
            sum += words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0);
        }
    }
    sum
}

/// The tables by which the processor finds a guest's memory, which no process's figures have. None where there is no guest.
fn guest_tables_mib(cgroup: &Path) -> f64 {
    let text = fs::read_to_string(cgroup.join("memory.stat")).unwrap_or_default();
    let bytes = text.lines().find_map(|line| line.strip_prefix("sec_pagetables ")?.parse().ok());
    bytes.unwrap_or(0.0) / f64::from(1 << 20)
}

fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib = field_kib(&text, "VmRSS:").with_context(|| format!("{path} has no line VmRSS"))?;
    Ok(kib / KIB_PER_MIB)
}

/// The figure in a line `NAME 123 kB` of a file of /proc.
fn field_kib(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0100000 r-xp 00000000 00:2b 77                         /usr/lib/isopod/isopod-vmm
Rss:                1024 kB
Pss:                 512 kB
SwapPss:              32 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
7f0000000000-7f0008000000 rw-p 00000000 00:01 1029                       /memfd:isopod-template (deleted)
Pss:                3000 kB
Private_Dirty:      2500 kB
Anonymous:          2000 kB
7f0010000000-7f0018000000 rw-p 00000000 00:00 0
Pss:                 100 kB
Anonymous:           100 kB
";

    #[test]
    fn pages_of_a_template_are_not_a_pods_until_it_writes_to_them() {
        assert_eq!(own_kib(SMAPS), 512.0 + 2000.0 + 100.0);
    }

    #[test]
    fn no_mapping_is_no_memory() {
        assert_eq!(own_kib(""), 0.0);
    }

    #[test]
    fn field_is_found_by_its_whole_name() {
        let text = "SwapPss:   9 kB\nPss_Dirty:  7 kB\nPss:   2048 kB\n";
        assert_eq!(field_kib(text, "Pss:"), Some(2048.0));
        assert_eq!(field_kib(text, "Rss:"), None);
    }

    #[test]
    fn own_process_has_memory() {
        assert!(resident_mib(std::process::id()).unwrap() > 0.0);
        assert!(process_mib(std::process::id()).unwrap() > 0.0);
    }

    #[test]
    fn guests_tables_are_read_from_the_pods_group() {
        let group = tempfile::tempdir().unwrap();
        assert_eq!(guest_tables_mib(group.path()), 0.0);
        fs::write(group.path().join("memory.stat"), "anon 5\npagetables 7\nsec_pagetables 1048576\n")
            .unwrap();
        assert_eq!(guest_tables_mib(group.path()), 1.0);
    }

    #[test]
    fn share_of_what_is_once_for_all_falls_with_the_number_of_pods() {
        let shared = Shared { daemon: 30.0, templates: 20.0 };
        let memory = |own: &[f64]| Memory { own: own.iter().copied().collect(), shared };
        assert_eq!(memory(&[1.0]).of_a_pod(), Some(51.0));
        assert_eq!(memory(&[1.0, 3.0]).of_a_pod(), Some(27.0));
        assert_eq!(memory(&[]).of_a_pod(), None);
    }
}
