//! Boots one virtual machine by hand, waits for its agent, and shows what it said: for playing with the VMM and for
//! measuring it.
//!
//!     boot VMM KERNEL ROOT [vcpus=N] [memory=MIB] [seconds=N] [huge] [nested] [kernel arguments...]
//!
//! Needs root and a real `/dev/kvm`.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::{Context, bail};
use isopod_protocols::{
    vmm::{BootConfig, CONTROL_FD, MAX_MESSAGE, Request, Response},
    vsock::{AGENT_PORT, MAX_HANDSHAKE, READY_PORT},
};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
        listen, recvmsg, sendmsg, socket, socketpair,
    },
};

/// What is booted, and for how long its agent is waited for.
struct Arguments {
    vmm: String,
    kernel: String,
    root: String,
    config: BootConfig,
    seconds: u32,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut next = |what: &str| words.next().with_context(|| format!("{what} is missing"));
        let (vmm, kernel, root) = (next("VMM")?, next("KERNEL")?, next("ROOT")?);
        let mut config = BootConfig {
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 128,
            huge_pages: false,
            nested_virtualization: false,
            kernel_args: vec![],
        };
        let mut seconds = 20;
        for word in words {
            match word.split_once('=') {
                Some(("vcpus", n)) => config.vcpus = n.parse()?,
                Some(("memory", n)) => (config.memory_mib, config.max_memory_mib) = (n.parse()?, n.parse()?),
                Some(("seconds", n)) => seconds = n.parse()?,
                _ if word == "huge" => config.huge_pages = true,
                _ if word == "nested" => config.nested_virtualization = true,
                _ => config.kernel_args.push(word),
            }
        }
        Ok(Self { vmm, kernel, root, config, seconds })
    }
}

fn main() -> anyhow::Result<()> {
    let Arguments { vmm, kernel, root, config, seconds } = Arguments::parse(std::env::args().skip(1))?;
    let kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let kernel = File::open(kernel).context("kernel")?;
    let root = File::open(root).context("root")?;
    let directory = std::env::temp_dir().join(format!("isopod-boot-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let vsock = UnixListener::bind(directory.join("vsock"))?;

    let begin = Instant::now();
    let address = UnixAddr::new(&directory.join("control"))?;
    let mut child = spawn(&vmm, &address)?;
    let control = seqpacket()?;
    connect(control.as_raw_fd(), &address)?;
    let fds = [kvm.as_raw_fd(), kernel.as_raw_fd(), root.as_raw_fd(), vsock.as_raw_fd()];
    println!("boot: {:?} after {:?}", call(&control, &Request::Boot(config), &fds)?, begin.elapsed());

    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    call(&control, &Request::ListenVsock { port: READY_PORT }, &[far.as_raw_fd()])?;
    drop(far);
    let limit = u16::try_from(seconds * 1000).unwrap_or(u16::MAX);
    let arrived = poll(&mut [PollFd::new(near.as_fd(), PollFlags::POLLIN)], limit)? == 1;
    println!("agent: {} after {:?}", if arrived { "ready" } else { "silent" }, begin.elapsed());
    if arrived {
        println!("agent: {:?} after {:?}", handshake(&directory.join("vsock")), begin.elapsed());
    }

    if child.try_wait()?.is_none() {
        if let Response::Console { text } = call(&control, &Request::Console {}, &[])? {
            print!("{text}");
        }
        println!("{:?}", call(&control, &Request::Stats {}, &[])?);
        println!("{:?}", call(&control, &Request::Stop {}, &[])?);
    }
    println!("{} after {:?}", child.wait()?, begin.elapsed());
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

/// Connects to the agent's port from the host.
fn handshake(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    writeln!(stream, "CONNECT {AGENT_PORT}")?;
    let mut answer = [0; MAX_HANDSHAKE];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn seqpacket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

fn spawn(vmm: &str, address: &UnixAddr) -> anyhow::Result<std::process::Child> {
    let listener = seqpacket()?;
    bind(listener.as_raw_fd(), address)?;
    listen(&listener, Backlog::new(4)?)?;
    let mut command = Command::new(vmm);
    command.args(["--uid", "70000", "--gid", "70000", "--largest-file", "1048576"]);
    let fd = listener.as_raw_fd();
    // SAFETY: between fork and exec only dup3 and fcntl are called, which are async-signal-safe.
    unsafe { command.pre_exec(move || give(fd)) };
    Ok(command.spawn()?)
}

/// Puts `fd` where the VMM looks for its control socket.
fn give(fd: RawFd) -> std::io::Result<()> {
    if fd == CONTROL_FD {
        // SAFETY: takes integers only.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        return Ok(());
    }
    // SAFETY: the child's own descriptor table; nothing there is used after this.
    unsafe { libc::dup3(fd, CONTROL_FD, 0) };
    Ok(())
}

fn call(control: &OwnedFd, request: &Request, fds: &[RawFd]) -> anyhow::Result<Response> {
    let bytes = serde_json::to_vec(request)?;
    let beside = [ControlMessage::ScmRights(fds)];
    let beside = if fds.is_empty() { &beside[..0] } else { &beside[..] };
    sendmsg::<()>(control.as_raw_fd(), &[IoSlice::new(&bytes)], beside, MsgFlags::empty(), None)?;
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let length = recvmsg::<()>(control.as_raw_fd(), &mut parts, None, MsgFlags::empty())?.bytes;
    if length == 0 {
        bail!("the vmm has closed the control socket");
    }
    Ok(serde_json::from_slice(&buffer[..length])?)
}
