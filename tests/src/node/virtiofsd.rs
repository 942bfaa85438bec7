//! The file servers of the node: one shows it the machine's root, one the run directory.
//!
//! QEMU 7.2's daemon, as Debian 12 packages it. It ends by itself when its QEMU goes.

use super::process::Process;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const PROGRAM: &str = "/usr/lib/qemu/virtiofsd";

/// Serves `directory` on the socket `name.sock` in `run`; the daemon's words go to `name.log` there.
pub fn serve(directory: &Path, name: &str, run: &Path) -> Result<(Process, PathBuf)> {
    if !Path::new(PROGRAM).exists() {
        bail!("no {PROGRAM}: apt-get install --no-install-recommends qemu-system-x86");
    }
    let socket = run.join(format!("{name}.sock"));
    let log_path = run.join(format!("{name}.log"));
    let log = std::fs::File::create(&log_path)?;
    let mut command = Process::command(Path::new(PROGRAM));
    command.arg(format!("--socket-path={}", socket.display()));
    // chroot and not a namespace: it works in containers too. The machine's files are not expected to change under a node, so
    // everything may be cached. No thread pool: requests are answered by the thread that reads the queue, which is faster here
    command.args(["-o", &format!("source={}", directory.display())]);
    command.args(["-o", "sandbox=chroot", "-o", "cache=always", "--thread-pool-size=0"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut daemon = Process::spawn(&mut command)?;

    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        if daemon.exited()?.is_some() || Instant::now() > deadline {
            let said = std::fs::read_to_string(&log_path).context("cannot read virtiofsd's log")?;
            bail!("virtiofsd for {} did not come up (it needs root): {}", directory.display(), said.trim());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok((daemon, socket))
}
