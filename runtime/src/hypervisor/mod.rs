//! What makes virtual machines, as a trait with two implementations: [`local`], our own VMM in a process of its own, and
//! [`fake`], for tests that have neither KVM nor root. [`template`] stands above the first: it keeps booted
//! guests, makes pods' VMs as clones of them, and boots where it has none. Nothing else here knows of
//! templates.
//!
//! Called by `sandbox` to boot, adopt and kill VMs, and by `container` to attach and detach extents and to reach guest
//! ports. It must not know what a pod is, and whatever a guest or a VMM says is bounded and has a deadline here.

mod control;
pub mod fake;
mod files;
mod local;
mod pages;
mod process;
mod sys;
pub mod template;
mod vm;
mod vsock;

#[cfg(any(test, feature = "testing"))]
pub use control::read_answer;
pub use files::log_tail;
pub use local::LocalHypervisor;

use crate::config;
use crate::hostile_text::Tail;
use crate::undo::{Injected, Undo};
use async_trait::async_trait;
pub use isopod_protocols::vmm::Extent;
use isopod_protocols::vmm::{BootConfig, ErrorKind, Stats};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

/// A running VM, shared by all who work with it.
pub type VmHandle = Arc<dyn Vm>;

/// The VM to be made.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Name of the VM in logs: the sandbox's id.
    pub id: String,
    /// Directory of its sockets and its log. It exists, and the caller removes it.
    pub directory: PathBuf,
    /// cgroup v2 directory that the VMM is born in; absent only in tests.
    pub cgroup: Option<PathBuf>,
    /// Host user and group of the VMM.
    pub uid: u32,
    /// Size of the largest file that it may change, in bytes: that of the pod's scratch disk.
    pub largest_file: u64,
    /// The VMM's program.
    pub vmm: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest root.
    pub root_image: PathBuf,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Most of them that it may be given while it runs, see [`most_vcpus`].
    pub max_vcpus: u8,
    /// Guest memory in MiB, once it runs.
    pub memory_mib: u32,
    /// What of it is there at its boot, or was at its template's, in MiB. The caller has the rest added.
    pub boot_memory_mib: u32,
    /// Ask for 2 MiB pages.
    pub huge_pages: bool,
    /// Let the guest run VMs of its own.
    pub nested_virtualization: bool,
    /// Words added to the kernel's command line.
    pub kernel_args: Vec<String>,
    /// Time until the agent must be there.
    pub boot_timeout: Duration,
    /// Among which VMs it may share a template, by the name of that scope: empty for all of the node. `None`: it boots.
    pub template_scope: Option<String>,
}

/// A VM that was made, and runs.
pub struct Booted {
    /// The VM.
    pub vm: VmHandle,
    /// What [`Hypervisor::adopt`] needs.
    pub record: VmRecord,
    /// A connection to its agent that was made on the way, for the first who talks to it; `None`: connect
    /// anew.
    pub agent: Option<UnixStream>,
}

impl VmSpec {
    /// A VM with these settings; what is its own (id, directory, cgroup, user, scope) is still to be filled in.
    pub fn new(settings: config::VmConfig) -> Self {
        let max_vcpus = most_vcpus(&settings, settings.vcpus);
        Self {
            id: String::new(),
            directory: PathBuf::new(),
            cgroup: None,
            // No user at all: a VM that is given none does not start.
            uid: u32::MAX,
            largest_file: u64::from(settings.scratch_mib) << 20,
            vmm: settings.vmm,
            kernel: settings.kernel,
            root_image: settings.root_image,
            vcpus: settings.vcpus,
            max_vcpus,
            memory_mib: settings.memory_mib,
            boot_memory_mib: settings.memory_mib,
            huge_pages: settings.huge_pages,
            nested_virtualization: settings.nested_virtualization,
            kernel_args: settings.kernel_args,
            boot_timeout: Duration::from_secs(settings.boot_timeout_s.into()),
            template_scope: None,
        }
    }

    /// What the VMM is told of it: nothing that tells it from another pod's.
    pub fn boot_config(&self) -> BootConfig {
        BootConfig {
            vcpus: self.vcpus,
            max_vcpus: self.max_vcpus,
            memory_mib: self.boot_memory_mib,
            max_memory_mib: self.memory_mib.max(most_memory_mib()).max(self.boot_memory_mib),
            huge_pages: self.huge_pages,
            nested_virtualization: self.nested_virtualization,
            kernel_args: self.kernel_args.clone(),
        }
    }
}

/// Virtual CPUs that are of use on this node: more than it has CPUs would only cost.
pub fn useful_vcpus() -> u8 {
    /// Most that a VMM takes.
    const LARGEST: usize = 64;
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    cpus.min(LARGEST) as u8
}

/// Most virtual CPUs that a VM which begins with `vcpus` may be given while it runs.
pub fn most_vcpus(settings: &config::VmConfig, vcpus: u8) -> u8 {
    settings.max_vcpus.min(useful_vcpus()).max(vcpus)
}

/// Most memory that a VM is let grow to on this node, in MiB: what the node has. A guest that lies can touch all of it, up to the
/// limit of its pod's cgroup, as a container could that has no limit.
pub fn most_memory_mib() -> u32 {
    /// Most that a VMM takes.
    const LARGEST: u64 = 1 << 20;
    let bytes = nix::sys::sysinfo::sysinfo().map_or(0, |node| node.ram_total());
    // Less than it: a multiple of 2.
    (bytes >> 21 << 1).min(LARGEST) as u32
}

/// What a restarted daemon needs to find a VM again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Process of the VMM.
    pub pid: i32,
    /// When that process began, in clock ticks since the machine's boot: tells it from a later one of the same number.
    pub started_at_ticks: u64,
    /// Directory of its sockets and its log.
    pub directory: PathBuf,
    /// The template it is a clone of.
    #[serde(default)]
    pub template: Option<String>,
}

/// Why a VM could not be booted, adopted or asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A file that a VM needs cannot be opened.
    #[error("{what} {path}: {source}")]
    File {
        /// Which one.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The VMM's process could not be started.
    #[error("vmm {path} cannot be started: {source}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The VMM refused a request.
    #[error("vmm of {id} refused {request}: {message}")]
    Refused {
        /// The VM.
        id: String,
        /// The request.
        request: &'static str,
        /// What kind of failure.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
    /// The control socket failed or broke.
    #[error("vmm of {id}: {request} failed on the control socket: {source}")]
    Control {
        /// The VM.
        id: String,
        /// The request.
        request: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The VMM answered what is no answer to the question.
    #[error("vmm of {id} gave an answer to {request} that does not fit it")]
    Unexpected {
        /// The VM.
        id: String,
        /// The request.
        request: &'static str,
    },
    /// The VMM ended while the guest booted.
    #[error("vmm of {id} ended during boot{tail}")]
    Ended {
        /// The VM.
        id: String,
        /// The last lines of its log and of the guest's console.
        tail: Tail,
    },
    /// The guest's agent did not appear.
    #[error("guest of {id} did not answer within {seconds} s{tail}")]
    BootTimeout {
        /// The VM.
        id: String,
        /// The limit.
        seconds: u64,
        /// The last lines of the VMM's log and of the guest's console.
        tail: Tail,
    },
    /// No connection to a port of the guest.
    #[error("guest of {id}: no connection to vsock port {port}: {source}")]
    Vsock {
        /// The VM.
        id: String,
        /// The guest's port.
        port: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl HypervisorError {
    /// Whether a VMM found a template's files damaged, or not what they should be. All other failures of a
    /// clone can be the doing of its pod, such as a limit of memory in which no VMM runs.
    pub fn is_of_template(&self) -> bool {
        matches!(self, Self::Refused { kind: ErrorKind::Template, .. })
    }
}

/// Makes VMs.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Makes a VM, by booting it or as a clone of one that did; answers when the agent serves its ports. What kills it is
    /// pushed to `undo`.
    ///
    /// # Errors
    /// With the last lines of the console where a guest was there. What was taken is on `undo`.
    async fn boot(&self, spec: &VmSpec, undo: &mut Undo) -> Result<Booted, HypervisorError>;

    /// Takes over a VM that an earlier daemon made; `None` where it has ended.
    ///
    /// # Errors
    /// Where it runs and does not answer.
    async fn adopt(&self, id: &str, record: &VmRecord) -> Result<Option<VmHandle>, HypervisorError>;
}

/// A VM, and nothing else: a pod's environment that is none would stand beside it (docs/decisions/0019).
#[async_trait]
pub trait Vm: Send + Sync {
    /// Maps a file into the extent disk; answers the offset of its first byte there. `length` is a multiple of 512.
    ///
    /// # Errors
    /// The extent is not mapped then.
    async fn attach_extent(&self, file: File, length: u64, read_only: bool) -> Result<u64, HypervisorError>;

    /// Takes an extent off the disk again. The guest must have let go of it.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] where there is none at `offset`.
    async fn detach_extent(&self, offset: u64) -> Result<(), HypervisorError>;

    /// What is mapped into the extent disk.
    ///
    /// # Errors
    /// Where the VMM does not answer.
    async fn extents(&self) -> Result<Vec<Extent>, HypervisorError>;

    /// Asks the guest to have that much memory in all, in MiB. It follows as far as it can: see [`Stats::memory_bytes`].
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] where that is less than it booted with, or more than it may ever have.
    async fn resize(&self, memory_mib: u32) -> Result<(), HypervisorError>;

    /// Makes processors until the VM has that many. The guest's agent is to bring them up.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] where that is more than it may ever have.
    async fn add_vcpus(&self, vcpus: u8) -> Result<(), HypervisorError>;

    /// Joins the guest's network card to a tap.
    ///
    /// # Errors
    /// The card stays without one then.
    async fn attach_tap(&self, tap: OwnedFd) -> Result<(), HypervisorError>;

    /// A connection to a port of the guest.
    ///
    /// # Errors
    /// Where nobody listens there, or the guest does not answer in time.
    async fn connect_vsock(&self, port: u32) -> Result<UnixStream, HypervisorError>;

    /// Counters since boot.
    ///
    /// # Errors
    /// Where the VMM does not answer.
    async fn stats(&self) -> Result<Stats, HypervisorError>;

    /// The last lines of the guest's console, printable.
    ///
    /// # Errors
    /// Where the VMM does not answer.
    async fn console(&self) -> Result<String, HypervisorError>;

    /// Kills the VM and waits until its process is gone. One that has ended is no error.
    async fn kill(&self);

    /// Waits for the end of the VM, whatever ends it.
    async fn ended(&self);
}
