//! `isopod-vmm` without the daemon: started by hand, driven over its control socket.

use anyhow::{Context, Result, bail, ensure};
use isopod_protocols::vmm::{BootConfig, LOG_BYTES, MAX_MESSAGE, Request, Response, Shape, Stats};
use isopod_protocols::vsock::READY_PORT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
    recv, sendmsg, socket, socketpair,
};
use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The identity that cases give their VMMs.
pub const UID: u32 = 70_123;

/// Size of the largest file that these may change, bytes.
pub const LARGEST_FILE: u64 = 64 << 20;

/// A VMM process. It is killed when this is dropped.
pub struct Vmm {
    child: Child,
    directory: TempDir,
    control: OwnedFd,
    /// The root of its guest: what is installed, unless a case says otherwise before it boots.
    pub root: PathBuf,
}

/// A machine of one processor and 128 MiB, with these words on the kernel's command line.
pub fn small(kernel_args: &[&str]) -> BootConfig {
    let kernel_args = kernel_args.iter().map(ToString::to_string).collect();
    BootConfig {
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 128,
        max_memory_mib: 128,
        huge_pages: false,
        nested_virtualization: false,
        kernel_args,
    }
}

/// What a node has installed under this variable of [`crate::artefacts::Artefacts::variables`].
pub fn installed(variable: &str) -> Result<PathBuf> {
    Ok(std::env::var_os(variable).with_context(|| format!("{variable} is not set"))?.into())
}

impl Vmm {
    /// Starts a VMM in its jail and connects to it.
    pub fn start() -> Result<Self> {
        let (uid, largest_file) = (UID.to_string(), LARGEST_FILE.to_string());
        Self::start_with(&["--uid", &uid, "--gid", &uid, "--largest-file", &largest_file])
    }

    /// Starts a VMM with these arguments and connects to it.
    pub fn start_with(arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = UnixAddr::new(&directory.path().join("control"))?;
        let listener = seqpacket()?;
        bind(listener.as_raw_fd(), &address)?;
        listen(&listener, Backlog::new(4)?)?;
        let mut how = File::options();
        let log = how.read(true).write(true).create_new(true).open(directory.path().join("log"))?;
        log.set_len(LOG_BYTES)?;
        let child = Command::new("sh")
            // The listener goes where the VMM looks for it; descriptor 9 is one that it must not keep.
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 9</etc/passwd </dev/null"])
            .arg(installed("ISOPOD_VMM")?)
            .args(arguments)
            .stdin(listener)
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start isopod-vmm")?;
        let control = connected(&address)?;
        Ok(Self { child, directory, control, root: installed("ISOPOD_ROOT_IMAGE")? })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the VMM wrote to its log.
    pub fn log(&self) -> Result<String> {
        // Zeroes follow what was written.
        Ok(fs::read_to_string(self.log_path())?.trim_end_matches('\0').to_owned())
    }

    /// The file of its log.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Leaves, and comes back as another client.
    pub fn reconnect(&mut self) -> Result<()> {
        self.control = connected(&UnixAddr::new(&self.directory.path().join("control"))?)?;
        Ok(())
    }

    /// Sends a request and takes its answer.
    pub fn call(&self, request: &Request, files: &[&dyn AsFd]) -> Result<Response> {
        self.call_raw(&serde_json::to_vec(request)?, files)
    }

    /// Sends a request that must be done.
    pub fn done(&self, request: &Request, files: &[&dyn AsFd]) -> Result<()> {
        let response = self.call(request, files)?;
        ensure!(response == Response::Done {}, "{request:?}: {response:?}; log: {}", self.log()?);
        Ok(())
    }

    /// Sends any bytes as a request and takes the answer.
    pub fn call_raw(&self, bytes: &[u8], files: &[&dyn AsFd]) -> Result<Response> {
        let fds: Vec<_> = files.iter().map(|file| file.as_fd().as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let beside = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(
            self.control.as_raw_fd(),
            &[IoSlice::new(bytes)],
            beside,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        let mut buffer = vec![0; MAX_MESSAGE];
        ensure!(readable(&self.control, Duration::from_secs(60))?, "no answer; log: {}", self.log()?);
        let length = recv(self.control.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        ensure!(length > 0, "the vmm has closed the control socket; log: {}", self.log()?);
        Ok(serde_json::from_slice(&buffer[..length])?)
    }

    /// Where host programs reach the guest.
    pub fn vsock(&self) -> PathBuf {
        self.directory.path().join("vsock")
    }

    /// Boots `kernel`.
    pub fn boot_kernel(&self, config: BootConfig, kernel: &Path) -> Result<Response> {
        let kernel = File::open(kernel).context("kernel")?;
        let (root, vsock) = (self.open_root()?, UnixListener::bind(self.vsock())?);
        self.call(&Request::Boot(config), &[&kvm()?, &kernel, &root, &vsock])
    }

    /// Boots the guest that is installed, and waits for its agent.
    pub fn boot_to_agent(&self, config: BootConfig) -> Result<()> {
        let booted = self.boot_kernel(config, &installed("ISOPOD_KERNEL")?)?;
        ensure!(booted == Response::Done {}, "{booted:?}");
        self.wait_for_agent()
    }

    /// Boots the kernel that is installed with `memory` as the guest's memory.
    pub fn boot_template(&self, config: BootConfig, memory: &File) -> Result<()> {
        memory.set_len(u64::from(config.memory_mib) << 20)?;
        let kernel = File::open(installed("ISOPOD_KERNEL")?).context("kernel")?;
        let (root, vsock) = (self.open_root()?, UnixListener::bind(self.vsock())?);
        self.done(&Request::BootTemplate(config), &[&kvm()?, &kernel, &root, &vsock, memory])
    }

    /// Clones a template that was booted as a machine of this shape.
    pub fn restore(&self, built_from: &str, shape: Shape, memory: &File, state: &File) -> Result<Response> {
        let request = Request::Restore { built_from: built_from.to_owned(), shape };
        let (root, vsock) = (self.open_root()?, UnixListener::bind(self.vsock())?);
        self.call(&request, &[&kvm()?, memory, state, &root, &vsock])
    }

    /// Counters of the VM.
    pub fn stats(&self) -> Result<Stats> {
        match self.call(&Request::Stats {}, &[])? {
            Response::Stats(stats) => Ok(stats),
            other => bail!("{other:?}"),
        }
    }

    fn open_root(&self) -> Result<File> {
        File::open(&self.root).context("guest root")
    }

    /// Waits for the agent of a guest that boots.
    pub fn wait_for_agent(&self) -> Result<()> {
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        self.done(&Request::ListenVsock { port: READY_PORT }, &[&far])?;
        drop(far);
        if !readable(&near, Duration::from_secs(90))? {
            bail!("the agent is silent; console: {}", self.console()?);
        }
        Ok(())
    }

    /// The guest's console.
    pub fn console(&self) -> Result<String> {
        match self.call(&Request::Console {}, &[])? {
            Response::Console { text } => Ok(text),
            other => bail!("{other:?}"),
        }
    }

    /// Waits for the end of the process.
    pub fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the vmm runs on; log: {}", self.log()?);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn kvm() -> Result<File> {
    File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn seqpacket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

fn connected(address: &UnixAddr) -> Result<OwnedFd> {
    let control = seqpacket()?;
    connect(control.as_raw_fd(), address).context("cannot connect to the vmm")?;
    Ok(control)
}

fn readable(fd: &OwnedFd, within: Duration) -> Result<bool> {
    let timeout = PollTimeout::try_from(within).context("timeout")?;
    Ok(poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)? == 1)
}

/// A kernel of a few instructions: an ELF file that is loaded at 1 MiB and entered at its first byte.
pub fn tiny_kernel(code: &[u8]) -> Result<tempfile::NamedTempFile> {
    const ADDRESS: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2_u16, 62].map(u16::to_le_bytes).concat()); // executable, x86-64
    elf.extend(1_u32.to_le_bytes());
    elf.extend([ADDRESS, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, sections
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend([1_u32, 7].map(u32::to_le_bytes).concat()); // loaded; read, write, execute
    let length = code.len() as u64;
    elf.extend([HEADERS, ADDRESS, ADDRESS, length, length, 0x1000].map(u64::to_le_bytes).concat());
    elf.extend(code);
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), elf)?;
    Ok(file)
}
