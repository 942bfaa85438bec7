//! The peer of the VM alone: QEMU's microvm, the machine it has for this purpose, on the node's KVM.
//!
//! It is given what makes it fast: no option ROMs, no legacy devices, its program and libraries on a tmpfs as Isopod's are.

use super::timed;
use crate::node::Qemu;
use crate::vmm::installed;
use anyhow::{Context, Result, bail, ensure};
use isopod_protocols::vsock::READY_PORT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How the reports call it.
pub const NAME: &str = "QEMU 10.0 microvm";

/// Where its program, libraries and log are.
const HOME: &str = "/run/qemu";

/// The guest's address on the node's vsock; 0 to 2 are taken by the protocol.
const GUEST_CID: u32 = 42;

/// `VMADDR_CID_ANY` of vsock(7).
const ANY_CID: u32 = u32::MAX;

/// Milliseconds until a guest that is silent is given up.
const LIMIT_MS: u16 = 60_000;

/// All that is needed to boot a guest again and again.
pub struct QemuGuest {
    firmware: Vec<PathBuf>,
    kernel: PathBuf,
    root_image: PathBuf,
    command_line: String,
    knocks: OwnedFd,
}

impl QemuGuest {
    /// Gets QEMU into the tmpfs, and listens where the agent knocks.
    pub fn prepare(command_line: &str) -> Result<Self> {
        let status = Command::new("modprobe").arg("vhost_vsock").status().context("cannot run modprobe")?;
        ensure!(status.success(), "modprobe vhost_vsock: {status}");
        let qemu = Qemu::locate()?;
        fs::create_dir_all(HOME)?;
        fs::copy(&qemu.program, program()).with_context(|| qemu.program.display().to_string())?;
        for library in libraries(&qemu.program)? {
            let name = library.file_name().context("a library without a name")?;
            fs::copy(&library, Path::new(HOME).join(name)).with_context(|| library.display().to_string())?;
        }
        let knocks = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(knocks.as_raw_fd(), &VsockAddr::new(ANY_CID, READY_PORT))?;
        listen(&knocks, Backlog::new(4)?)?;
        Ok(Self {
            firmware: qemu.firmware,
            kernel: installed("ISOPOD_KERNEL")?,
            root_image: installed("ISOPOD_ROOT_IMAGE")?,
            command_line: command_line.to_owned(),
            knocks,
        })
    }

    /// Milliseconds from the start of QEMU to the agent's knock.
    pub fn boot(&self) -> Result<f64> {
        let (took, _guest) = timed(|| {
            let guest = Guest(self.command()?.spawn().context("cannot start QEMU")?);
            let mut knock = [PollFd::new(self.knocks.as_fd(), PollFlags::POLLIN)];
            if poll(&mut knock, PollTimeout::from(LIMIT_MS))? == 0 {
                bail!("the agent in QEMU's guest is silent; QEMU and the guest say:\n{}", said());
            }
            Ok(guest)
        })?;
        // taken, so that the next boot finds none
        nix::unistd::close(accept(self.knocks.as_raw_fd())?)?;
        Ok(took)
    }

    fn command(&self) -> Result<Command> {
        let log = fs::File::create(log())?;
        let mut command = Command::new(program());
        command.env("LD_LIBRARY_PATH", HOME);
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        command.args(["-M", "microvm,x-option-roms=off,isa-serial=off,pit=off,pic=off,rtc=off"]);
        command.args(["-accel", "kvm", "-cpu", "host,pmu=off", "-smp", "1", "-m", "128"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command.arg("-kernel").arg(&self.kernel).args(["-append", &self.command_line]);
        let drive = format!("id=root,file={},format=raw,if=none,readonly=on", self.root_image.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=root"]);
        command.args(["-device", "virtio-rng-device"]);
        command.args(["-device", &format!("vhost-vsock-device,guest-cid={GUEST_CID}")]);
        // the console, so that a guest that fails can say why
        command.args(["-device", "virtio-serial-device", "-chardev", "stdio,id=console,signal=off"]);
        command.args(["-device", "virtconsole,chardev=console"]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

/// A running QEMU. It is killed when this is dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program() -> PathBuf {
    Path::new(HOME).join("qemu-system-x86_64")
}

fn log() -> PathBuf {
    Path::new(HOME).join("log")
}

fn said() -> String {
    String::from_utf8_lossy(&fs::read(log()).unwrap_or_default()).into_owned()
}

/// The libraries that a program is linked with, all that `ldd` finds.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let ran = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    ensure!(ran.status.success(), "ldd {}: {}", program.display(), ran.status);
    Ok(paths(&String::from_utf8_lossy(&ran.stdout)))
}

/// `NAME => PATH (ADDRESS)`; the loader and the kernel's own page have no arrow.
fn paths(listed: &str) -> Vec<PathBuf> {
    let path = |line: &str| Some(line.split_once("=> ")?.1.split_whitespace().next()?.to_owned());
    listed.lines().filter_map(path).filter(|path| path.starts_with('/')).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_behind_the_arrows() {
        let listed = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibz.so.1 => /lib/libz.so.1 (0x7f01)\n\
            \tlibabsent.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x7f02)\n";
        assert_eq!(paths(listed), [PathBuf::from("/lib/libz.so.1")]);
    }
}
