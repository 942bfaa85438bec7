//! Where the things under test come from: programs that cargo built, and what the scripts of `guest-image/` and `tests/` make.
//!
//! Every function may be overruled by an environment variable of the same name with `ISOPOD_` before it, as the Makefile or a
//! packager does. A script is instant when what it makes is in the cache, and says on stderr when it is not.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The top of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The directory for heavy things that outlive a build: `ISOPOD_CACHE`, or `~/.cache/isopod`.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ISOPOD_CACHE") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("neither ISOPOD_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/isopod"))
}

/// Cargo's build output.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// The command and daemon `isopod`.
pub fn isopod() -> Result<PathBuf> {
    program("ISOPOD_ISOPOD", "isopod")
}

/// The virtual machine monitor.
pub fn vmm() -> Result<PathBuf> {
    program("ISOPOD_VMM", "isopod-vmm")
}

/// The program in the guest.
pub fn agent() -> Result<PathBuf> {
    program("ISOPOD_AGENT", "isopod-agent")
}

/// The guest kernel, an uncompressed `vmlinux`.
pub fn kernel() -> Result<PathBuf> {
    made_by("ISOPOD_KERNEL", "guest-image/kernel/build.sh", &[])
}

/// The guest's root file system, an EROFS image with the agent in it.
pub fn root_image() -> Result<PathBuf> {
    if let Some(path) = overruled("ISOPOD_ROOT_IMAGE")? {
        return Ok(path);
    }
    made_by("ISOPOD_ROOT_IMAGE", "guest-image/rootfs/build.sh", &[&agent()?])
}

/// The program that makes EROFS images from tar streams.
pub fn mkfs_erofs() -> Result<PathBuf> {
    if let Some(path) = overruled("ISOPOD_MKFS_EROFS")? {
        return Ok(path);
    }
    Ok(made_by("ISOPOD_EROFS_UTILS", "guest-image/erofs-utils/build.sh", &[])?.join("mkfs.erofs"))
}

/// The directory of crictl, critest and the CNI plugins.
pub fn tools() -> Result<PathBuf> {
    Ok(made_by("ISOPOD_TOOLS", "tests/tools/all.sh", &[])?.join("bin"))
}

/// The directory of the container images that tests push to their registry.
pub fn images() -> Result<PathBuf> {
    made_by("ISOPOD_IMAGES", "tests/images/build.sh", &[])
}

fn overruled(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    ensure!(path.exists(), "{variable} names {}, which does not exist", path.display());
    Ok(Some(path))
}

/// A program of this workspace, built for release: an unoptimised one costs more in an emulated node than its build saves.
fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = overruled(variable)? {
        return Ok(path);
    }
    let path = target().join("x86_64-unknown-linux-gnu/release").join(name);
    ensure!(path.exists(), "{} does not exist: cargo build --release --workspace --bins", path.display());
    Ok(path)
}

/// The path that a build script prints on stdout.
fn made_by(variable: &str, script: &str, arguments: &[&Path]) -> Result<PathBuf> {
    if let Some(path) = overruled(variable)? {
        return Ok(path);
    }
    let script = repository().join(script);
    let mut command = Command::new(&script);
    let ran = command.args(arguments).stderr(Stdio::inherit()).output();
    let ran = ran.with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(ran.status.success(), "{}: {}", script.display(), ran.status);
    let printed = String::from_utf8_lossy(&ran.stdout);
    let path = PathBuf::from(printed.trim());
    ensure!(path.exists(), "{} printed {printed:?}, which is not a path that exists", script.display());
    Ok(path)
}
