//! Cases about the jail of the VMM, seen from the outside while a guest runs in it.
//!
//! That a forbidden system call kills is proven where the filters are: `vmm/tests/seccomp.rs`.

use anyhow::{Context, Result, ensure};
use isopod_protocols::vmm::LOG_BYTES;
use isopod_tests::cases;
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::vmm::{LARGEST_FILE, UID, Vmm, small};
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    isopod_tests::case::run(
        Settings { isopod: Isopod::Installed, ..Settings::default() },
        cases!["security":
            every_thread_is_unprivileged_and_filtered,
            vmm_sees_an_empty_read_only_root,
            vmm_has_its_own_namespaces,
            vmm_keeps_no_inherited_descriptor,
            vmm_writes_no_core_file,
            vmm_makes_no_file_longer_than_its_disk,
            vmm_makes_a_bounded_number_of_threads,
            log_of_a_vmm_cannot_grow,
            vmm_refuses_to_be_root,
        ],
    )
}

fn running() -> Result<Vmm> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(small(&[]))?;
    Ok(vmm)
}

/// The value of a field of a `/proc/PID/status` file.
fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} in {status}"))?.trim())
}

fn every_thread_is_unprivileged_and_filtered() -> Result<()> {
    let vmm = running()?;
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", vmm.pid()))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let name = field(&status, "Name")?;
        names.push(name.to_owned());
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            ensure!(field(&status, set)? == "0000000000000000", "{name}: {set} {}", field(&status, set)?);
        }
        for ids in ["Uid", "Gid"] {
            let all = field(&status, ids)?;
            ensure!(all.split_whitespace().all(|id| id == UID.to_string()), "{name}: {ids} {all}");
        }
        ensure!(field(&status, "Groups")?.is_empty(), "{name} is in groups");
        ensure!(field(&status, "NoNewPrivs")? == "1", "{name} may gain privileges");
        ensure!(field(&status, "Seccomp")? == "2", "{name} has no filter");
        // The filter of the boot and that of the thread's own work.
        ensure!(field(&status, "Seccomp_filters")? == "2", "{name}: {}", field(&status, "Seccomp_filters")?);
    }
    // KVM's own, in the kernel: newer ones run it as a thread of the process that made the VM, and show 15
    // bytes of its name.
    names.retain(|name| name != "kvm-nx-lpage-re");
    names.sort();
    ensure!(names == ["disk", "isopod-vmm", "vcpu0"], "{names:?}");
    Ok(())
}

fn vmm_sees_an_empty_read_only_root() -> Result<()> {
    let vmm = running()?;
    let root = format!("/proc/{}/root/", vmm.pid());
    let seen: Vec<_> = fs::read_dir(&root)?.collect();
    ensure!(seen.is_empty(), "{seen:?}");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", vmm.pid()))?;
    let lines: Vec<_> = mounts.lines().collect();
    ensure!(lines.len() == 1, "{mounts}");
    let options = lines[0].split(' ').nth(5).unwrap_or_default();
    ensure!(options.split(',').any(|option| option == "ro"), "{mounts}");
    let written = fs::write(format!("{root}file"), "");
    ensure!(written.is_err(), "even root can write to it");
    Ok(())
}

fn vmm_has_its_own_namespaces() -> Result<()> {
    let vmm = running()?;
    for kind in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{kind}"));
        ensure!(of(&vmm.pid().to_string())? != of("self")?, "{kind} namespace is shared");
    }
    let interfaces = fs::read_to_string(format!("/proc/{}/net/dev", vmm.pid()))?;
    let names: Vec<_> = interfaces.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
    ensure!(names.iter().all(|name| name.trim() == "lo"), "{interfaces}");
    let routes = fs::read_to_string(format!("/proc/{}/net/route", vmm.pid()))?;
    ensure!(routes.lines().count() <= 1, "{routes}");
    Ok(())
}

fn vmm_keeps_no_inherited_descriptor() -> Result<()> {
    let vmm = running()?;
    let root = isopod_tests::vmm::installed("ISOPOD_ROOT_IMAGE")?;
    for fd in fs::read_dir(format!("/proc/{}/fd", vmm.pid()))? {
        // One that is closed while we look is not kept.
        let Ok(target) = fs::read_link(fd?.path()) else { continue };
        let allowed = !target.starts_with("/")
            || target.starts_with("/dev/null")
            || target.starts_with("/dev/kvm")
            || target.file_name() == root.file_name();
        ensure!(allowed, "{} is open", target.display());
    }
    Ok(())
}

/// The soft and the hard value of a limit.
fn limit(vmm: &Vmm, name: &str) -> Result<[String; 2]> {
    let limits = fs::read_to_string(format!("/proc/{}/limits", vmm.pid()))?;
    let values = limits.lines().find_map(|line| line.strip_prefix(name)).context("no limit")?;
    let mut values = values.split_whitespace().map(str::to_owned);
    Ok([values.next().context("no soft limit")?, values.next().context("no hard limit")?])
}

fn vmm_writes_no_core_file() -> Result<()> {
    let core = limit(&running()?, "Max core file size")?;
    ensure!(core == ["0", "0"], "{core:?}");
    Ok(())
}

fn vmm_makes_no_file_longer_than_its_disk() -> Result<()> {
    let size = limit(&running()?, "Max file size")?;
    let expected = LARGEST_FILE.to_string();
    ensure!(size == [expected.as_str(), expected.as_str()], "{size:?}");
    Ok(())
}

fn vmm_makes_a_bounded_number_of_threads() -> Result<()> {
    let threads = limit(&running()?, "Max processes")?;
    ensure!(threads == ["256", "256"], "{threads:?}");
    Ok(())
}

/// The process has its log mapped and no descriptor of it, so that even its own code could not make it longer.
fn log_of_a_vmm_cannot_grow() -> Result<()> {
    let vmm = running()?;
    for _ in 0..2000 {
        // Each of these is a line.
        vmm.call_raw(&[b'x'; 100], &[])?;
    }
    for fd in fs::read_dir(format!("/proc/{}/fd", vmm.pid()))? {
        let Ok(target) = fs::read_link(fd?.path()) else { continue };
        ensure!(target != vmm.log_path(), "the log is open");
    }
    let length = fs::metadata(vmm.log_path())?.len();
    ensure!(length == LOG_BYTES, "the log has {length} bytes");
    ensure!(vmm.log()?.contains("log budget spent"), "{}", vmm.log()?);
    Ok(())
}

fn vmm_refuses_to_be_root() -> Result<()> {
    for arguments in [&["--uid", "0", "--gid", "1"][..], &["--uid", "1", "--gid", "0"], &["--no-jail"], &[]] {
        // A VMM that has gone refuses the connection, or takes it with it.
        let Ok(mut vmm) = Vmm::start_with(arguments) else { continue };
        let status = vmm.ended(Duration::from_secs(20))?;
        ensure!(status.code() == Some(1), "{arguments:?}: {status}");
        ensure!(vmm.log()?.contains("end: "), "{arguments:?}: {}", vmm.log()?);
    }
    Ok(())
}
