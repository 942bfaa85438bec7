//! The control socket of `isopod-vmm`: one JSON message per packet on a unix `SOCK_SEQPACKET` socket, file descriptors
//! beside it (SCM_RIGHTS). The client sends a [`Request`], the VMM answers each with one [`Response`], in order.
//!
//! The VMM is started with the listening socket as descriptor [`CONTROL_FD`]; it opens nothing by path. It serves one
//! client after another, so a restarted daemon connects again and goes on.

use serde::{Deserialize, Serialize};

/// Descriptor at which a new VMM finds its listening control socket.
pub const CONTROL_FD: i32 = 3;

/// Size in bytes of the file that a VMM is given as standard error, its log. It maps the file and lets go of the descriptor, so
/// that the log can grow no further, whoever controls the process. Zeroes follow what was written. A VMM that is given
/// anything else writes to it as usual.
pub const LOG_BYTES: u64 = 128 * 1024;

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most ranges of pages in one message.
pub const MAX_PAGE_RANGES: usize = 2048;

/// Size of a page of guest memory in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Most descriptors beside one message.
pub const MAX_FDS: usize = 8;

/// What a client may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Makes the VM and lets it run. Once in a VMM's life, and before anything else.
    ///
    /// Descriptors, in order: `/dev/kvm`, the kernel (ELF `vmlinux`), the guest root (an EROFS image, read-only, which
    /// becomes the extent at offset 0), and a listening unix stream socket for vsock connections from the host.
    /// Answered by [`Response::Done`] when the vCPUs run.
    Boot(BootConfig),
    /// As [`Request::Boot`], of a VM that is to become a template. One more descriptor, the fifth: a file of `memory_mib`
    /// MiB, open for reading and writing, which becomes the guest's memory. Only such a VM can be saved.
    BootTemplate(BootConfig),
    /// Stops a template for good and writes the state of its processors and devices. Descriptor: an empty file for it. The
    /// guest must have no vsock connection and no extent but its root. Answered by [`Response::Done`] when all is written;
    /// the process ends then, and with it the only mapping through which the memory is written.
    Save {
        /// What the template was made from, in the client's words, at most 256 bytes: it is written into the state.
        built_from: String,
    },
    /// Makes the VM as a clone of a template, in place of [`Request::Boot`], and lets it run.
    ///
    /// Descriptors, in order: `/dev/kvm`, the template's memory and its state (both for reading), the guest root that the
    /// template booted from, and a listening unix stream socket for vsock connections from the host.
    /// Answered by [`Response::Done`] when the vCPUs run.
    Restore {
        /// What [`Request::Save`] was told: a state that says otherwise is refused with [`ErrorKind::Template`].
        built_from: String,
        /// The machine that the template was booted as: so is a state of another one.
        shape: Shape,
    },
    /// Tells what a clone of a template has written until now, so that later clones of it can be given those pages before they
    /// ask. Descriptor: the template's memory, for reading. What this clone left alone becomes large pages of that file,
    /// where the host can do that. Answered by [`Response::WorkingSet`].
    Rehearsed {},
    /// Gives the guest pages of its own for these, each a copy of what it shows now. Answered by [`Response::Done`] when all are
    /// there; meanwhile the devices wait, so a client asks for a few dozen at a time.
    Populate {
        /// Pages of guest memory.
        pages: Vec<PageRange>,
    },
    /// Asks the guest to grow or shrink to this much memory in all. Answered by [`Response::Done`] at once; the guest
    /// follows as far as it can, see [`Stats::memory_bytes`].
    ResizeMemory {
        /// MiB, a multiple of 2, at least what the VM booted with and at most its `max_memory_mib`.
        memory_mib: u32,
    },
    /// Makes processors until the VM has this many. They wait until the guest brings them up; none is ever taken away.
    /// Answered by [`Response::Done`].
    AddVcpus {
        /// How many in all: at most the VM's `max_vcpus`.
        vcpus: u8,
    },
    /// Maps a file into the pod's extent disk. Descriptor: the file. Answered by [`Response::Extent`].
    AttachExtent {
        /// Length in bytes, a multiple of 512. Reads past the end of a shorter file give zeroes.
        length: u64,
        /// Writes, discards and write-zeroes to this range fail with an I/O error in the guest.
        read_only: bool,
    },
    /// Takes an extent off the disk and closes its file. Answered by [`Response::Done`]. The range answers with I/O
    /// errors from then on.
    DetachExtent {
        /// What [`Response::Extent`] said.
        offset: u64,
    },
    /// Answered by [`Response::Extents`].
    ListExtents {},
    /// Joins the guest's network card to a tap. Descriptor: the tap, opened with `IFF_TAP | IFF_NO_PI |
    /// IFF_VNET_HDR`, with headers of 12 bytes, and with the offloads CSUM, TSO4 and TSO6. Until then frames
    /// are dropped. Answered by [`Response::Done`].
    AttachTap {},
    /// Hands connections that the guest makes to a host port to the client. Descriptor: a unix `SOCK_SEQPACKET` socket
    /// on which every connection arrives as the port number (4 bytes, little endian) with a stream descriptor beside it.
    /// Answered by [`Response::Done`]. A second call for the same port replaces the first.
    ListenVsock {
        /// The host port.
        port: u32,
    },
    /// Answered by [`Response::Stats`].
    Stats {},
    /// The last lines that the guest wrote to its console. Answered by [`Response::Console`].
    Console {},
    /// Ends the VM and the process. Answered by [`Response::Done`] just before the end.
    Stop {},
}

/// The VM to be made: nothing in it tells one pod from another, so a booted VM can serve as a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u8,
    /// Most that [`Request::AddVcpus`] may make of them, up to 64: `vcpus`, or more. The guest has per-CPU memory for all.
    pub max_vcpus: u8,
    /// Guest memory in MiB, at least 64.
    pub memory_mib: u32,
    /// Most that [`Request::ResizeMemory`] may make of it, in MiB: `memory_mib`, or more and a multiple of 2. Costs address
    /// space only. A guest that lies can take all of it: what holds it is the cgroup of the VMM.
    pub max_memory_mib: u32,
    /// Ask the host for 2 MiB pages for guest memory.
    pub huge_pages: bool,
    /// Shows the guest the processor's virtualization (VMX, SVM), so that it can run VMs of its own. Off, KVM refuses it to the
    /// guest: what such VMs reach of the host's KVM is closed.
    #[serde(default)]
    pub nested_virtualization: bool,
    /// Words added to the kernel's command line after the VMM's own.
    pub kernel_args: Vec<String>,
}

/// What a client knows of a VM before its guest has run: the part of a [`BootConfig`] that a template's state
/// repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// As [`BootConfig::vcpus`].
    pub vcpus: u8,
    /// As [`BootConfig::max_vcpus`].
    pub max_vcpus: u8,
    /// As [`BootConfig::memory_mib`].
    pub memory_mib: u32,
    /// As [`BootConfig::max_memory_mib`].
    pub max_memory_mib: u32,
    /// As [`BootConfig::nested_virtualization`].
    pub nested_virtualization: bool,
}

impl BootConfig {
    /// The machine that is to be made.
    pub fn shape(&self) -> Shape {
        let Self { vcpus, max_vcpus, memory_mib, max_memory_mib, nested_virtualization, .. } = *self;
        Shape { vcpus, max_vcpus, memory_mib, max_memory_mib, nested_virtualization }
    }
}

/// What the VMM answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    /// Done.
    Done {},
    /// The extent's place on the disk.
    Extent {
        /// First byte, a multiple of 1 MiB.
        offset: u64,
    },
    /// What is mapped into the disk, in rising order of offsets; the first is the guest's root.
    Extents {
        /// At most 1024.
        extents: Vec<Extent>,
    },
    /// What a clone has written.
    WorkingSet {
        /// At most [`MAX_PAGE_RANGES`], in rising order.
        pages: Vec<PageRange>,
        /// Blocks of 2 MiB of the template that are large pages of the host now.
        large_pages: u32,
        /// Blocks that this clone left alone as well, and that stay small pages: the host had no large page,
        /// or makes none.
        refused_large_pages: u32,
    },
    /// Counters since boot, or since the VM was cloned.
    Stats(Stats),
    /// The console's tail.
    Console {
        /// At most 16 KiB; bytes that are not printable ASCII, tab or newline are replaced.
        text: String,
    },
    /// The request failed; nothing changed.
    Error {
        /// What kind of failure.
        kind: ErrorKind,
        /// What failed and what to do.
        message: String,
    },
}

/// Kinds of failure a client may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong: malformed, out of range, descriptors missing.
    Invalid,
    /// Not possible in this state: booted already, not booted yet, no such extent.
    State,
    /// KVM refused or cannot run a guest on this machine.
    Kvm,
    /// The kernel file cannot be loaded.
    Kernel,
    /// The template's memory or state is damaged, or not of what it should be: boot without it.
    Template,
    /// A system call failed.
    System,
}

/// An extent of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// The guest may only read.
    pub read_only: bool,
}

/// Pages of guest memory that lie side by side: the number of the first ([`PAGE_SIZE`] bytes each, from address 0), and how
/// many they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange(pub u64, pub u64);

/// Counters of one VM, since its boot or since it was cloned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Exits from guest to VMM, all vCPUs.
    pub exits: u64,
    /// Bytes the guest read from its extent disk.
    pub disk_read_bytes: u64,
    /// Bytes the guest wrote to its extent disk.
    pub disk_write_bytes: u64,
    /// Bytes received by the guest's network card.
    pub net_rx_bytes: u64,
    /// Bytes sent by the guest's network card.
    pub net_tx_bytes: u64,
    /// Open vsock connections.
    pub vsock_connections: u64,
    /// Virtual CPUs, also those that the guest has not brought up.
    pub vcpus: u8,
    /// Memory that the guest has now, bytes: what it booted with and what was added since.
    pub memory_bytes: u64,
    /// Guest memory given back to the host by free page reporting and the balloon, bytes since boot.
    pub reclaimed_bytes: u64,
}
