//! The directory of one node on the machine: sockets, console log, and `shared/`, which the node has as /node.
//!
//! It is removed when the node is dropped. What a killed program left behind is removed by the next one: nobody holds its lock.

use super::kernel::Kernel;
use super::terminal::Terminal;
use super::{Isopod, Job, Settings, registry};
use crate::artefacts::{self, Artefacts};
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fmt::Write;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const PREFIX: &str = "isopod-node-";
const CONSOLE_TAIL_LINES: usize = 30;

/// Files that the node reads from /node.
const FILES: [(&str, &str); 5] = [
    ("init.sh", include_str!("../../node/init.sh")),
    ("services.sh", include_str!("../../node/services.sh")),
    ("config.toml", include_str!("../../node/config.toml")),
    ("crictl.yaml", include_str!("../../node/crictl.yaml")),
    ("cni.conflist", include_str!("../../node/cni.conflist")),
];

/// See the head of the file.
#[derive(Debug)]
pub struct RunDirectory {
    dir: TempDir,
    _lock: Flock<File>,
}

impl RunDirectory {
    /// Makes it and fills `shared/`. The node loads these modules of its kernel.
    pub fn make(
        settings: &Settings,
        kernel: &Kernel,
        modules: &[&str],
        job: &Job,
        terminal: Option<&Terminal>,
    ) -> Result<RunDirectory> {
        remove_stale();
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .context("cannot make a directory for the node")?;
        let lock =
            Flock::lock(File::open(dir.path())?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        let made = RunDirectory { dir, _lock: lock };
        let shared = made.shared();
        for name in ["logs", "out"] {
            fs::create_dir_all(shared.join(name))?;
        }
        for (name, content) in FILES {
            fs::write(shared.join(name), content)?;
        }
        let artefacts = match settings.isopod {
            Isopod::Absent => None,
            Isopod::Installed | Isopod::Serving => Some(Artefacts::locate()?),
        };
        let images = settings.registry.then(artefacts::images).transpose()?;
        let mut variables: Vec<_> = artefacts.iter().flat_map(Artefacts::variables).collect();
        variables.extend(images.iter().map(|images| ("ISOPOD_IMAGES", images.as_path())));
        fs::write(shared.join("job"), job.script(&variables)?)?;
        let mut text = node_settings(settings, artefacts.as_ref(), terminal)?;
        let modules: Vec<_> =
            kernel.load_order(modules)?.iter().map(|path| path.display().to_string()).collect();
        writeln!(text, "MODULES='{}'", modules.join(" "))?;
        writeln!(text, "MODULES_DIRECTORY='{}'", kernel.modules().display())?;
        fs::write(shared.join("settings"), text)?;
        Ok(made)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What the node has as /node.
    pub fn shared(&self) -> PathBuf {
        self.path().join("shared")
    }

    pub fn initramfs(&self) -> PathBuf {
        self.path().join("initramfs.cpio")
    }

    pub fn console_log(&self) -> PathBuf {
        self.path().join("console.log")
    }

    /// The exit status that init.sh hands out as its last act; nothing while the job runs.
    pub fn exit_status(&self) -> Result<Option<u8>> {
        let written = match fs::read_to_string(self.shared().join("exit")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.context("cannot read the job's exit status")?,
        };
        let status = written.trim().parse();
        Ok(Some(status.with_context(|| format!("the job's exit status is {written:?}"))?))
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        let log = fs::read(self.console_log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..].join("\n")
    }

    /// Copies the job's results to `target`.
    pub fn copy_results(&self, target: &Path) -> Result<()> {
        copy_tree(&self.shared().join("out"), target)
    }

    /// Copies the console and the services' logs to where they outlive the node; returns that directory.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let name = self.path().file_name().context("a node's directory without a name")?;
        let kept = artefacts::target().join("node").join(name);
        copy_tree(&self.shared().join("logs"), &kept)?;
        if self.console_log().exists() {
            fs::copy(self.console_log(), kept.join("console.log"))?;
        }
        Ok(kept)
    }
}

/// Shell variables for init.sh.
fn node_settings(
    settings: &Settings,
    artefacts: Option<&Artefacts>,
    terminal: Option<&Terminal>,
) -> Result<String> {
    let mut text = String::new();
    let isopod = match settings.isopod {
        Isopod::Absent => "absent",
        Isopod::Installed => "installed",
        Isopod::Serving => "serving",
    };
    writeln!(text, "ISOPOD={isopod}")?;
    if let Some(terminal) = terminal {
        writeln!(text, "JOB_TTY=/dev/hvc0")?;
        writeln!(text, "JOB_TTY_SIZE='{}'", terminal.size().unwrap_or_default())?;
    }
    writeln!(text, "NEAR={}", if settings.near { "yes" } else { "no" })?;
    writeln!(text, "COLD={}", if super::cold() { "yes" } else { "no" })?;
    let registry = if settings.registry { registry::storage(settings.debian)? } else { PathBuf::new() };
    writeln!(text, "REGISTRY='{}'", registry.display())?;
    for (name, path) in artefacts.iter().flat_map(|artefacts| artefacts.variables()) {
        writeln!(text, "{name}='{}'", path.display())?;
    }
    Ok(text)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}

/// Removes directories whose program is gone. Fails silently: another program may be doing the same. A young one may be about to be locked.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|it| it.modified()).ok().and_then(|made| made.elapsed().ok());
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && age.is_some_and(|age| age > Duration::from_secs(60))
            && let Ok(dir) = File::open(entry.path())
            && let Ok(_lock) = Flock::lock(dir, FlockArg::LockExclusiveNonblock)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
