//! Cases about what boots: the node itself, so far.

use anyhow::{Context, Result, ensure};
use isopod_tests::cases;
use isopod_tests::node::Settings;
use kvm_ioctls::Kvm;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    isopod_tests::case::run(
        Settings::default(),
        cases!["boot": node_has_real_kvm, node_has_cgroup_v2_tun_and_bridge],
    )
}

/// Real: made by the module that runs guests on hardware virtualization, and good for a VM with a CPU. There are kernels whose
/// /dev/kvm answers to all of this and only interprets its guests.
fn node_has_real_kvm() -> Result<()> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    ensure!(kvm.get_api_version() == 12, "/dev/kvm has API version {}", kvm.get_api_version());
    let hardware = ["kvm_amd", "kvm_intel"].map(|module| Path::new("/sys/module").join(module).exists());
    ensure!(hardware.contains(&true), "neither kvm_amd nor kvm_intel is loaded");
    let vm = kvm.create_vm().context("cannot make a VM")?;
    vm.create_vcpu(0).context("cannot make a vCPU")?;
    Ok(())
}

fn node_has_cgroup_v2_tun_and_bridge() -> Result<()> {
    let delegated = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control")?;
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        ensure!(
            delegated.split_whitespace().any(|one| one == controller),
            "{controller} is not delegated: {delegated}"
        );
    }
    let tun = fs::metadata("/dev/net/tun").context("no /dev/net/tun")?;
    ensure!(tun.file_type().is_char_device(), "/dev/net/tun is no device");

    ip("link add case0 type bridge")?;
    ip("tuntap add case1 mode tap")?;
    ip("link set case1 master case0 up")?;
    ensure!(Path::new("/sys/class/net/case0/brif/case1").exists(), "the bridge does not have the tap");
    ip("link del case1")?;
    ip("link del case0")
}

fn ip(arguments: &str) -> Result<()> {
    let ran = Command::new("ip").args(arguments.split(' ')).output().context("cannot run ip")?;
    ensure!(ran.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&ran.stderr).trim());
    Ok(())
}
