//! The node: a throw-away virtual machine that has the machine's own files, read-only below a tmpfs, and real KVM.
//!
//! ```text
//! Node::start   qemu, virtiofsd x 2 -> early.sh (initramfs) -> init.sh -> services.sh -> the job
//! Node::wait    output streams to the caller's stdout and stderr until the job's exit status is there
//! drop          everything is killed and removed, whatever happened
//! ```
//!
//! A node runs one job and is gone. Several may run side by side. Nothing of the machine is changed.

mod initramfs;
mod job;
mod kernel;
mod machine;
mod mend;
mod process;
mod qemu;
mod registry;
mod run_directory;
mod terminal;
mod virtiofsd;

pub use job::Job;
pub use machine::Time;
pub use qemu::Qemu;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kernel::Kernel;
use machine::Machine;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use process::Process;
use run_directory::RunDirectory;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use terminal::Terminal;

/// What a pod's network needs, loaded before the daemon starts, so that no figure holds the loading of a module. Without the daemon they
/// come when something asks for them.
const NETWORK_MODULES: [&str; 20] = [
    "veth",
    "bridge",
    "br_netfilter",
    "act_mirred",
    "cls_u32",
    "cls_matchall",
    "sch_ingress",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_fib_ipv4",
    // what follows is for iptables, which the plugins ask for a pod's rules at its end, whoever made them
    "nft_compat",
    "xt_MASQUERADE",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_addrtype",
    "xt_nat",
];

/// How much of Isopod a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isopod {
    /// None; nothing is built for it.
    Absent,
    /// Its programs, guest and configuration, crictl, and a pod network of the standard CNI plugins.
    Installed,
    /// That, and `isopod serve` is up before the job starts.
    Serving,
}

/// What kind of node, and what it is given.
#[derive(Debug)]
pub struct Settings {
    /// What drives its clock.
    pub time: Time,
    /// CPUs; with counted time there is one. Emulated ones share a host thread, see docs/decisions/0004.
    pub cpus: u32,
    /// Memory in MiB. All that the node writes is in it.
    pub memory_mib: u32,
    /// How much of Isopod it has.
    pub isopod: Isopod,
    /// Whether a container registry with the images of `tests/images` is up on 127.0.0.1:5000.
    pub registry: bool,
    /// Whether that registry has the image `debian` too, which takes minutes to build once.
    pub debian: bool,
    /// Whether all that a pod's start runs lies in the node's memory, for nodes in which something is measured.
    pub near: bool,
    /// Whether its kernel is the pinned one, such as hosts have today, and not the machine's own.
    pub pinned_kernel: bool,
    /// How long all of it may take.
    pub timeout: Duration,
    /// Where files go that the job writes to `$ISOPOD_OUT`.
    pub out: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            time: Time::Wall,
            cpus: 1,
            memory_mib: 6144,
            isopod: Isopod::Absent,
            registry: false,
            debian: false,
            near: false,
            pinned_kernel: false,
            timeout: Duration::from_secs(600),
            out: None,
        }
    }
}

/// Whether the caller wants nodes whose pods all boot, by `ISOPOD_COLD=1`: each group can be run both ways.
pub fn cold() -> bool {
    std::env::var_os("ISOPOD_COLD").is_some_and(|value| value == "1")
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    // before the file servers and the directory: it is dropped first
    qemu: Process,
    _servers: [Process; 2],
    run: RunDirectory,
    // after QEMU, which changes its modes
    _terminal: Option<Terminal>,
    copies: Vec<JoinHandle<()>>,
    signals: SignalFd,
    deadline: Instant,
}

impl Node {
    /// Starts the node and in it the job. From here on the calling thread takes SIGINT, SIGTERM and SIGHUP only in [`Node::wait`]; it
    /// must not end before the node.
    pub fn start(settings: Settings, job: &Job) -> Result<Node> {
        ensure!(nix::unistd::geteuid().is_root(), "the node's file server needs root: run as root");
        let (qemu, kernel) = (Qemu::locate()?, Kernel::locate(settings.pinned_kernel)?.unpacked()?);
        let mut modules = vec![machine::kvm_module(settings.time), "tun"];
        if settings.isopod != Isopod::Absent {
            modules.extend(NETWORK_MODULES);
        }
        let terminal = job.terminal.then(Terminal::lend);
        let run = RunDirectory::make(&settings, &kernel, &modules, job, terminal.as_ref())?;
        let signals = take_signals()?;
        // from here on: what is built before takes as long as it takes
        let deadline = Instant::now() + settings.timeout;

        initramfs::write(&kernel, &run.initramfs())?;
        let (root_server, root_socket) = virtiofsd::serve("/".as_ref(), "root", run.path())?;
        let (run_server, run_socket) = virtiofsd::serve(&run.shared(), "run", run.path())?;
        let machine = Machine {
            qemu: &qemu,
            kernel: &kernel,
            time: settings.time,
            cpus: settings.cpus,
            memory_mib: settings.memory_mib,
            terminal: job.terminal,
            initramfs: &run.initramfs(),
            console_log: &run.console_log(),
            root_socket: &root_socket,
            run_socket: &run_socket,
        };
        let mut command = machine.command();
        if !job.terminal {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut qemu = Process::spawn(&mut command)?;
        let child = qemu.child();
        let copies = [
            child.stdout.take().map(|from| std::thread::spawn(|| copy(from, io::stdout()))),
            child.stderr.take().map(|from| std::thread::spawn(|| copy(from, io::stderr()))),
        ];
        let copies = copies.into_iter().flatten().collect();
        let _servers = [root_server, run_server];
        Ok(Node { settings, qemu, _servers, run, _terminal: terminal, copies, signals, deadline })
    }

    /// Waits for the job; its exit status, 128 + N if signal N ended it, 125 if the node could not start it.
    pub fn wait(mut self) -> Result<u8> {
        let status = match self.exit_status() {
            Ok(status) => status,
            Err(error) => {
                // a job that was cut short may have written results all the same
                if let Some(out) = &self.settings.out {
                    let _ = self.run.copy_results(out);
                }
                return Err(self.explain(&error));
            }
        };
        // all output has left the node by now; its last bytes are in the pipes
        self.qemu.kill();
        for copy in self.copies.drain(..) {
            copy.join().ok().context("the thread that copies the job's output panicked")?;
        }
        if let Some(out) = &self.settings.out {
            self.run.copy_results(out)?;
        }
        if status != 0 && (self.settings.isopod == Isopod::Serving || status == 125) {
            let kept = self.run.keep_logs()?;
            eprintln!("node: the logs of this run are in {}", kept.display());
        }
        Ok(status)
    }

    fn exit_status(&mut self) -> Result<u8> {
        loop {
            if let Some(status) = self.run.exit_status()? {
                return Ok(status);
            }
            if let Some(status) = self.qemu.exited()? {
                bail!("the node went down before the job ended ({status})");
            }
            if Instant::now() > self.deadline {
                bail!("the job did not end within {} s and was killed", self.settings.timeout.as_secs());
            }
            let mut signal = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut signal, PollTimeout::from(10_u8)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for signals"),
            }
            if let Some(signal) = self.signals.read_signal()? {
                bail!("ended by signal {}", signal.ssi_signo);
            }
        }
    }

    /// The error with the end of the console, and where the whole of it is.
    fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let kept = match self.run.keep_logs() {
            Ok(kept) => format!("logs in {}", kept.display()),
            Err(lost) => format!("logs lost: {lost:#}"),
        };
        anyhow!("{error:#}; {kept}; end of the node's console:\n{}", self.run.console_tail())
    }
}

/// Blocks the signals that end a program, so that a node is torn down in order when they come.
fn take_signals() -> Result<SignalFd> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // children inherit this: ctrl-c reaches only us, and they are ended by SIGKILL
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot listen to signals")
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // the caller's stdout may be closed (`| head`); the job goes on
        if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
    let _ = io::copy(&mut from, &mut io::sink());
}
