//! A guest without an agent: busybox, and a script as its PID 1, which tells on the console what a case wants to know.

use crate::vmm::{Vmm, installed};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;
use tempfile::NamedTempFile;

/// The node's own: static, and its shell has most of its commands built in.
const BUSYBOX: &str = "/bin/busybox";

/// Makes the guest's root, an EROFS image. It goes when this is dropped.
pub fn root(script: &str) -> Result<NamedTempFile> {
    let tree = tempfile::tempdir()?;
    for directory in ["bin", "dev", "proc", "sbin"] {
        fs::create_dir(tree.path().join(directory))?;
    }
    fs::copy(BUSYBOX, tree.path().join("bin/busybox")).context(BUSYBOX)?;
    let init = tree.path().join("sbin/init");
    fs::write(&init, format!("#!/bin/busybox sh\n{script}"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let image = NamedTempFile::new()?;
    let mut mkfs = Command::new(installed("ISOPOD_MKFS_EROFS")?);
    let made = mkfs.arg("--quiet").arg(image.path()).arg(tree.path()).output()?;
    ensure!(made.status.success(), "{mkfs:?}: {}", String::from_utf8_lossy(&made.stderr));
    Ok(image)
}

/// The events that the guest has told so far, in lines of a name and seconds of its own clock.
pub fn told(vmm: &Vmm) -> Result<Vec<(String, Duration)>> {
    let console = vmm.console()?;
    // The last line may be half there.
    let lines = console.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let event = |line: &str| {
        let (name, seconds) = line.split_once(' ')?;
        Some((name.to_owned(), Duration::try_from_secs_f64(seconds.parse().ok()?).ok()?))
    };
    Ok(lines.filter_map(event).collect())
}
