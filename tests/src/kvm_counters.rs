//! What KVM itself counts of a guest: its exits, and of which kinds.
//!
//! Used by the case that watches idle guests and by the benchmark of the network. It must not judge the
//! numbers.

use anyhow::{Context, Result};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where KVM has a directory for each VM, named PID-DESCRIPTOR.
const ALL: &str = "/sys/kernel/debug/kvm";

/// The counters of one VM.
#[derive(Debug)]
pub struct KvmCounters {
    directory: PathBuf,
}

impl KvmCounters {
    /// Those of the guest that this process runs.
    ///
    /// # Errors
    /// When it runs none, or the kernel shows no counters.
    pub fn of(vmm: Pid) -> Result<Self> {
        if !Path::new(ALL).exists() {
            Command::new("mount").args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"]).status()?;
        }
        let prefix = format!("{vmm}-");
        let entries = fs::read_dir(ALL).context(ALL)?;
        let mut paths = entries.flatten().map(|entry| entry.path());
        let is_its =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        let directory =
            paths.find(is_its).with_context(|| format!("kvm counts nothing for process {vmm}"))?;
        Ok(Self { directory })
    }

    /// The counter of this name, such as `exits`, `mmio_exits` or `halt_exits`, since the VM was made.
    ///
    /// # Errors
    /// When the kernel has none of this name.
    pub fn read(&self, name: &str) -> Result<u64> {
        let path = self.directory.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.trim().parse().with_context(|| format!("{}: {text:?}", path.display()))
    }
}
