//! The peer: containerd with runc, started in the node beside Isopod.
//!
//! As its documentation has it, but for what lies where: programs, root and state on a tmpfs, so that no figure holds a read
//! from the machine; the sandbox image from the node's registry. CNI configuration and plugins are the ones Isopod uses. Its
//! shims get longer to answer, as Isopod's guests do in the node: many at once on an emulated processor take their time.

use crate::cri::{Cri, REGISTRY};
use crate::vmm::installed;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How the reports call it.
pub const NAME: &str = "containerd 2.4 + runc 1.4";

/// How the reports call the one that keeps layers as EROFS images.
pub const WITH_EROFS: &str = "containerd 2.4, erofs snapshotter";

/// In what form it keeps layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// Files in directories, as it does by itself.
    Overlayfs,
    /// EROFS images, which it has mkfs.erofs make of the archives, with the options that its documentation advises.
    Erofs,
}

impl Snapshotter {
    /// The directory of all that is the peer's.
    fn home(self) -> &'static Path {
        Path::new(match self {
            Self::Overlayfs => "/run/peer",
            Self::Erofs => "/run/peer-erofs",
        })
    }
}

/// The programs that it is made of, in the directory of tools.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "runc"];

/// A containerd that serves. It is killed when this is dropped; its shims go with the node.
pub struct Containerd {
    child: Child,
    snapshotter: Snapshotter,
    /// A connection to its CRI.
    pub cri: Cri,
}

impl Containerd {
    /// Starts it and waits until it serves.
    pub fn start(snapshotter: Snapshotter) -> Result<Self> {
        let home = snapshotter.home();
        let programs = home.join("bin");
        fs::create_dir_all(&programs)?;
        let tools = std::env::var_os("ISOPOD_TOOLS").context("ISOPOD_TOOLS is not set: this is no node")?;
        for program in PROGRAMS {
            let from = Path::new(&tools).join(program);
            fs::copy(&from, programs.join(program)).with_context(|| from.display().to_string())?;
        }
        if snapshotter == Snapshotter::Erofs {
            let from = installed("ISOPOD_MKFS_EROFS")?;
            fs::copy(&from, programs.join("mkfs.erofs")).with_context(|| from.display().to_string())?;
        }
        fs::write(home.join("config.toml"), configuration(snapshotter))?;
        let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
        let log = File::create(home.join("log"))?;
        let child = Command::new(programs.join("containerd"))
            .arg("--config")
            .arg(home.join("config.toml"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let cri = Cri::connect_to(&home.join("containerd.sock").to_string_lossy())?;
        let mut started = Self { child, snapshotter, cri };
        started.wait_until_it_serves()?;
        Ok(started)
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_it_serves(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.cri.pods().is_err() {
            let gone = self.child.try_wait()?;
            ensure!(
                gone.is_none() && Instant::now() < deadline,
                "containerd does not serve; its log ends with:\n{}",
                log_tail(self.snapshotter)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(snapshotter: Snapshotter) -> String {
    let home = snapshotter.home().display();
    let layers = match snapshotter {
        Snapshotter::Overlayfs => "",
        Snapshotter::Erofs => EROFS,
    };
    format!(
        "version = 3
root = '{home}/root'
state = '{home}/state'
[grpc]
  address = '{home}/containerd.sock'
[timeouts]
  'io.containerd.timeout.shim.cleanup' = '60s'
  'io.containerd.timeout.shim.shutdown' = '60s'
  'io.containerd.timeout.task.state' = '60s'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{REGISTRY}/isopod/pause:latest'
{layers}"
    )
}

/// See containerd's docs/snapshotters/erofs.md; the CRI pulls by the transfer service, which has a setting of its own.
const EROFS: &str = "[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'erofs'
[plugins.'io.containerd.service.v1.diff-service']
  default = ['erofs', 'walking']
[plugins.'io.containerd.differ.v1.erofs']
  mkfs_options = ['-T0', '--mkfs-time', '--sort=none']
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'erofs'
  differ = 'erofs'
";

/// The last lines of its log.
pub fn log_tail(snapshotter: Snapshotter) -> String {
    let log = fs::read_to_string(snapshotter.home().join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
