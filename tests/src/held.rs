//! What pods hold on a node: processes, taps, namespaces, mounts, cgroups, leases, records, files. A case looks before and
//! after; what is more is left over.

use crate::cri::wait_for;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// One line for each thing held now.
pub fn by_pods() -> Result<BTreeSet<String>> {
    let mut held = BTreeSet::new();
    processes(&mut held)?;
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        let target = line.split(' ').nth(1).unwrap_or_default();
        if target.contains("isopod-") || target.starts_with("/run/netns/") {
            held.insert(format!("mount {target}"));
        }
    }
    let links = Command::new("ip").args(["-o", "link"]).output()?;
    for line in String::from_utf8_lossy(&links.stdout).lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        if name.starts_with("veth") || name.starts_with("tap") {
            held.insert(format!("link {}", name.split('@').next().unwrap_or(name)));
        }
    }
    walk(Path::new("/sys/fs/cgroup"), &mut |path| {
        if path.is_dir() && path.to_string_lossy().contains("isopod-") {
            held.insert(format!("cgroup {}", path.display()));
        }
    });
    for directory in
        ["/run/isopod/sandboxes", "/run/isopod/containers", "/run/isopod/streams", "/run/isopod/network"]
    {
        walk(Path::new(directory), &mut |path| {
            held.insert(format!("state {}", path.display()));
        });
    }
    for directory in ["/run/netns", "/var/lib/isopod/scratch", "/var/lib/isopod/images/incoming"] {
        walk(Path::new(directory), &mut |path| {
            let template = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("template"));
            if !template {
                held.insert(format!("file {}", path.display()));
            }
        });
    }
    walk(Path::new("/var/lib/cni/networks"), &mut |path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.parse::<std::net::IpAddr>().is_ok() {
            held.insert(format!("lease {name}"));
        }
    });
    Ok(held)
}

/// Nothing is held that was not before, or will not be in five seconds: some of it goes a moment after the call that gave it up.
pub fn nothing_more_than(before: &BTreeSet<String>, when: &str) -> Result<()> {
    let mut more = Vec::new();
    for _ in 0..50 {
        more = by_pods()?.difference(before).cloned().collect();
        if more.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("left {when}: {more:#?}")
}

/// How many files of the image store the VMMs have open: the layers that are mapped into guests.
pub fn mapped_layers() -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if name.trim() != "isopod-vmm" {
            continue;
        }
        // it may have ended meanwhile
        let Ok(files) = fs::read_dir(process.join("fd")) else { continue };
        let is_layer = |path: &Path| fs::read_link(path).is_ok_and(|file| file.starts_with(IMAGES));
        count += files.flatten().filter(|file| is_layer(&file.path())).count();
    }
    Ok(count)
}

/// Where the daemon keeps images.
pub const IMAGES: &str = "/var/lib/isopod/images";

/// All files of the image store.
pub fn of_images() -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    walk(Path::new(IMAGES), &mut |path| {
        if path.is_file() {
            held.insert(path.display().to_string());
        }
    });
    held
}

/// Waits until the image store holds what it held before.
pub fn images_as_before(before: &BTreeSet<String>, when: &str) -> Result<()> {
    let settled = wait_for("files of a pull to go", || Ok((of_images() == *before).then_some(())));
    ensure!(settled.is_ok(), "left {when}: {:#?}", of_images().symmetric_difference(before));
    Ok(())
}

fn processes(held: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        if matches!(name.trim(), "isopod-vmm" | "mkfs.erofs") {
            held.insert(format!("process {} {}", name.trim(), path.display()));
        }
    }
    Ok(())
}

/// Everything below a directory; what cannot be read is not there.
fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        visit(&path);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, visit);
        }
    }
}
