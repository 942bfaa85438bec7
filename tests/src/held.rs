//! What pods hold on a node: processes, taps, namespaces, mounts, cgroups, leases, records, files. A case looks before and
//! after; what is more is left over. What belongs to templates is not a pod's, and comes and goes beside them.

use crate::cri::{Pod, wait_for};
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
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
        if path.is_dir() && path.to_string_lossy().contains("isopod-") && !is_of_template(path) {
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

/// Processes by the words that they were started with.
pub fn started_as(is_meant: impl Fn(&[&[u8]]) -> bool) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let Ok(command) = fs::read(path.join("cmdline")) else { continue };
        if is_meant(&command.split(|&byte| byte == 0).collect::<Vec<_>>()) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// The VMMs that run, with the cgroup of each, which names its pod.
pub fn vmms() -> Result<Vec<(Pid, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let Ok(cgroup) = fs::read_to_string(path.join("cgroup")) else { continue };
        if name.trim() == "isopod-vmm" && !is_of_template(Path::new(cgroup.trim())) {
            let pid = path.file_name().and_then(|n| n.to_str()).context("a pid")?;
            found.push((Pid::from_raw(pid.parse()?), cgroup));
        }
    }
    Ok(found)
}

/// The cgroups of the converters of image layers that run.
pub fn converters() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let Ok(cgroup) = fs::read_to_string(path.join("cgroup")) else { continue };
        if name.trim() == "isopod-layer" {
            found.push(cgroup);
        }
    }
    Ok(found)
}

/// The VMM of a pod.
pub fn vmm_of(pod: &Pod) -> Result<Pid> {
    let vmm = vmms()?.into_iter().find(|(_, cgroup)| cgroup.contains(&pod.id));
    Ok(vmm.with_context(|| format!("pod {} has no VMM", pod.id))?.0)
}

/// Files that a VMM has open for its guest: the guest's root, and layers.
pub fn layers_of(vmm: Pid) -> Vec<PathBuf> {
    let Ok(open) = fs::read_dir(format!("/proc/{vmm}/fd")) else { return Vec::new() };
    let targets = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains(".erofs")).collect()
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
    held.extend(vmms()?.into_iter().map(|(pid, _)| format!("process isopod-vmm {pid}")));
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        if name.trim() == "isopod-layer" {
            held.insert(format!("process isopod-layer {}", path.display()));
        }
    }
    Ok(())
}

/// Whether a control group is a template's or lies below one.
fn is_of_template(cgroup: &Path) -> bool {
    cgroup.to_string_lossy().contains("isopod-template-")
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
