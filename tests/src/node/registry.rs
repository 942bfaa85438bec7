//! The images that a node's registry serves, as docker-registry stores them.
//!
//! Pushing them takes seconds natively and a minute in an emulated node, so it is done once on the machine; the node's registry then writes only
//! to the node's own overlay.

use super::process::Process;
use crate::artefacts;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The storage directory, filled at the first call for these images; with `debian` it has that image too.
pub fn storage(debian: bool) -> Result<PathBuf> {
    let images = artefacts::images()?;
    let key = images.file_name().with_context(|| format!("{} has no name", images.display()))?;
    let mut key = key.to_os_string();
    if debian {
        key.push("-");
        key.push(key_of_debian()?);
    }
    let kind = artefacts::cache()?.join("registry");
    let storage = kind.join(key);
    if storage.is_dir() {
        return Ok(storage);
    }
    fs::create_dir_all(&kind).with_context(|| format!("cannot make {}", kind.display()))?;
    let work = tempfile::tempdir_in(&kind)?;
    let filled = work.path().join("storage");
    fs::create_dir(&filled)?;
    push_images(&filled, work.path(), debian)?;
    match fs::rename(&filled, &storage) {
        // somebody else was faster, with the same content
        Err(_) if storage.is_dir() => Ok(storage),
        renamed => renamed.map(|()| storage).context("cannot keep the registry's storage"),
    }
}

/// A hash of the image's index, which names all that is in it: built anew, the same recipe gives another image.
fn key_of_debian() -> Result<String> {
    let index = artefacts::debian_image()?.join("debian/index.json");
    let index = fs::read(&index).with_context(|| format!("cannot read {}", index.display()))?;
    Ok(Sha256::digest(index)[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn push_images(storage: &Path, work: &Path, debian: bool) -> Result<()> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let config = work.join("config.yml");
    let storage = storage.display();
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{storage}'}}}}\nhttp: {{addr: '{address}'}}\n"
    );
    fs::write(&config, text)?;
    let log = fs::File::create(work.join("log"))?;
    let mut command = Process::command(Path::new("docker-registry"));
    command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut registry = Process::spawn(&mut command)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        if registry.exited()?.is_some() || Instant::now() > deadline {
            bail!("docker-registry did not come up: {}", fs::read_to_string(work.join("log"))?.trim());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let script = artefacts::repository().join("tests/images/push.sh");
    let mut push = Command::new(&script);
    push.args(debian.then_some("--debian")).arg(address.to_string()).stdout(Stdio::null());
    let status = push.status();
    let status = status.with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(status.success(), "{}: {status}", script.display());
    Ok(())
}
