//! The peer: containerd with runc, started in the node beside Isopod.
//!
//! As its documentation has it, but for what lies where: programs, root and state on a tmpfs, so that no figure holds a read
//! from the machine; the sandbox image from the node's registry. CNI configuration and plugins are the ones Isopod uses. Its
//! shims get longer to answer, as Isopod's guests do in the node: many at once on an emulated processor take their time.

use crate::cri::{Cri, REGISTRY};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// All that is the peer's.
const HOME: &str = "/run/peer";

/// How the reports call it.
pub const NAME: &str = "containerd 2.4 + runc 1.4";

/// The programs that it is made of, in the directory of tools.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "runc"];

/// A containerd that serves. It is killed when this is dropped; its shims go with the node.
pub struct Containerd {
    child: Child,
    /// A connection to its CRI.
    pub cri: Cri,
}

impl Containerd {
    /// Starts it and waits until it serves.
    pub fn start() -> Result<Self> {
        let home = Path::new(HOME);
        let programs = home.join("bin");
        fs::create_dir_all(&programs)?;
        let tools = std::env::var_os("ISOPOD_TOOLS").context("ISOPOD_TOOLS is not set: this is no node")?;
        for program in PROGRAMS {
            let from = Path::new(&tools).join(program);
            fs::copy(&from, programs.join(program)).with_context(|| from.display().to_string())?;
        }
        fs::write(home.join("config.toml"), configuration())?;
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
        let cri = Cri::connect_to(&format!("{HOME}/containerd.sock"))?;
        let mut started = Self { child, cri };
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
                log_tail()
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

fn configuration() -> String {
    format!(
        "version = 3
root = '{HOME}/root'
state = '{HOME}/state'
[grpc]
  address = '{HOME}/containerd.sock'
[timeouts]
  'io.containerd.timeout.shim.cleanup' = '60s'
  'io.containerd.timeout.shim.shutdown' = '60s'
  'io.containerd.timeout.task.state' = '60s'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{REGISTRY}/isopod/pause:latest'
"
    )
}

/// The last lines of its log.
pub fn log_tail() -> String {
    let log = fs::read_to_string(Path::new(HOME).join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
