//! Where the things under test come from: programs that cargo builds, and what the scripts of `guest-image/` and `tests/` make.
//!
//! Each may be named by an environment variable instead, as a packager does, and as a node does for what runs in it. A script is instant
//! when what it makes is in the cache; when it is not, it says so on stderr and works, perhaps for minutes.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The top of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a folder of the repository")
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

/// Isopod as it is installed on a node, and the tools to drive it.
#[derive(Debug, Clone)]
pub struct Artefacts {
    /// The command and daemon `isopod`.
    pub isopod: PathBuf,
    /// The same program with faults that a case can order, which nobody installs.
    pub isopod_with_faults: PathBuf,
    /// The virtual machine monitor.
    pub vmm: PathBuf,
    /// The guest kernel, an uncompressed `vmlinux`.
    pub kernel: PathBuf,
    /// The guest's root file system, an EROFS image with the agent in it.
    pub root_image: PathBuf,
    /// The program that makes EROFS images from tar streams.
    pub mkfs_erofs: PathBuf,
    /// The directory of crictl, the CNI plugins and other programs of other projects.
    pub tools: PathBuf,
}

impl Artefacts {
    /// Finds them, building what is not there or not up to date.
    pub fn locate() -> Result<Artefacts> {
        Ok(Artefacts {
            isopod: named("ISOPOD_ISOPOD", || program("isopod"))?,
            isopod_with_faults: named("ISOPOD_WITH_FAULTS", || program("isopod-with-faults"))?,
            vmm: named("ISOPOD_VMM", || program("isopod-vmm"))?,
            kernel: named("ISOPOD_KERNEL", || made_by("guest-image/kernel/build.sh", &[]))?,
            root_image: named("ISOPOD_ROOT_IMAGE", || {
                let agent = named("ISOPOD_AGENT", agent)?;
                made_by("guest-image/rootfs/build.sh", &[agent.as_os_str()])
            })?,
            mkfs_erofs: named("ISOPOD_MKFS_EROFS", || {
                Ok(made_by("guest-image/erofs-utils/build.sh", &[])?.join("mkfs.erofs"))
            })?,
            tools: named("ISOPOD_TOOLS", || Ok(made_by("tests/tools/all.sh", &[])?.join("bin")))?,
        })
    }

    /// Where a node has installed what a guest boots from, by variable: on its tmpfs when instructions are counted.
    pub fn installed_in_node() -> [(&'static str, &'static str); 3] {
        [
            ("ISOPOD_VMM", "/usr/lib/isopod/isopod-vmm"),
            ("ISOPOD_KERNEL", "/usr/lib/isopod/vmlinux"),
            ("ISOPOD_ROOT_IMAGE", "/usr/lib/isopod/guest-root.erofs"),
        ]
    }

    /// The variables that make [`Artefacts::locate`] find the same again.
    pub fn variables(&self) -> [(&'static str, &Path); 7] {
        [
            ("ISOPOD_ISOPOD", &self.isopod),
            ("ISOPOD_WITH_FAULTS", &self.isopod_with_faults),
            ("ISOPOD_VMM", &self.vmm),
            ("ISOPOD_KERNEL", &self.kernel),
            ("ISOPOD_ROOT_IMAGE", &self.root_image),
            ("ISOPOD_MKFS_EROFS", &self.mkfs_erofs),
            ("ISOPOD_TOOLS", &self.tools),
        ]
    }
}

/// The directory of the container images that tests push to their registry: one OCI layout each.
pub fn images() -> Result<PathBuf> {
    named("ISOPOD_IMAGES", || made_by("tests/images/build.sh", &[]))
}

/// The directory below which the node's kernel and its modules are, as a distribution installs them: the
/// machine's own, or the pinned one.
pub fn node_kernel(pinned: bool) -> Result<PathBuf> {
    named("ISOPOD_NODE_KERNEL", || match pinned {
        true => made_by("tests/tools/node-kernel.sh", &[]),
        false => Ok("/".into()),
    })
}

/// The directory of the image `debian`, an OCI layout of that name: apart from the others, as it takes minutes to build.
pub fn debian_image() -> Result<PathBuf> {
    named("ISOPOD_DEBIAN_IMAGE", || made_by("tests/images/debian.sh", &[]))
}

/// What the variable names, or else what `make` finds.
fn named(variable: &str, make: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(path) => {
            ensure!(path.exists(), "{variable} names {}, which does not exist", path.display());
            Ok(path)
        }
        None => make(),
    }
}

/// A program of the host, built for release: an unoptimised one costs more in an emulated node than its build saves.
fn program(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<()> = OnceLock::new();
    if BUILT.get().is_none() {
        // all of them and the whole workspace, as `make build` does: a narrower choice has other features,
        // and builds all anew
        let programs = ["--bin", "isopod", "--bin", "isopod-with-faults", "--bin", "isopod-vmm"];
        build(&[&["--release", "--workspace"][..], &programs[..]].concat())?;
        BUILT.get_or_init(|| ());
    }
    Ok(target().join(TARGET).join("release").join(name))
}

/// The guest's program, in a profile of its own: see docs/decisions/0007.
fn agent() -> Result<PathBuf> {
    build(&["--profile", "guest", "--package", "isopod-agent"])?;
    Ok(target().join(TARGET).join("guest/isopod-agent"))
}

fn build(arguments: &[&str]) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repository()).args(["build", "--quiet"]).args(arguments);
    // What cargo tells a test program of its own package. A build script of `ring` depends on it, and with it
    // all that uses TLS: each change from a shell's cargo to this one and back would compile the daemon anew.
    let of_this_package = std::env::vars_os().filter(|(name, _)| {
        name.to_str()
            .is_some_and(|name| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_"))
    });
    for (name, _) in of_this_package {
        cargo.env_remove(name);
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "Isopod does not build ({cargo:?})");
    Ok(())
}

/// The path that a build script prints on stdout.
fn made_by(script: &str, arguments: &[&OsStr]) -> Result<PathBuf> {
    let mut command = Command::new(repository().join(script));
    let ran = command.args(arguments).stderr(Stdio::inherit()).output();
    let ran = ran.with_context(|| format!("cannot run {script}"))?;
    ensure!(ran.status.success(), "{script}: {}", ran.status);
    let printed = String::from_utf8_lossy(&ran.stdout);
    let path = PathBuf::from(printed.trim());
    ensure!(path.exists(), "{script} printed {printed:?}, which is not a path that exists");
    Ok(path)
}
