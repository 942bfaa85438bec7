//! A clone of a template, top to bottom: from its memory and its saved state to a machine that runs.
//!
//! ```text
//! state file -> memory (private, shown from the template's) -> vm (slots, interrupt controllers) -> devices on the bus
//!   -> state of vm and processors -> another generation -> devices go on -> threads
//! ```
//!
//! The counterpart of [`crate::builder`], called by `main` in its place. What makes the clone another machine
//! than its siblings: its [`crate::vmgenid`], at which the kernel seeds its random numbers anew, and right
//! after that the fresh random bytes to which alone the agent gives its first answer
//! (`isopod_protocols::agent`).

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use isopod_protocols::vmm::{ErrorKind, Shape};
use kvm_ioctls::VcpuFd;

use crate::{
    bus::BusError,
    console_log::ConsoleLog,
    cpu::state::{VcpuState, VcpuStateError},
    devices::{Backends, Devices, DevicesError, Machinery},
    exit::ExitHandle,
    layout,
    machine::Machine,
    memory::{self, Backing, MemoryError},
    pluggable::{self, MemorySize},
    ports,
    snapshot::{self, SnapshotError},
    vcpu::Buses,
    vcpus::{Claims, VcpuContext, Vcpus, VcpusError},
    virtio::{EventLoop, MakeError, block::Root},
    vm::{Vm, VmError},
    vmgenid::{VmGenId, VmGenIdError},
};

/// Why there is no clone.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not the descriptors that a clone needs.
    #[error(
        "a clone needs 5 descriptors (/dev/kvm, the template's memory and state, guest root, vsock listener), got {0}"
    )]
    Descriptors(usize),
    /// The template's state.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The template's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The virtual machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The guest root cannot be measured.
    #[error("cannot examine the guest root")]
    Root(#[source] io::Error),
    /// The devices.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// The VM's generation.
    #[error(transparent)]
    VmGenId(#[from] VmGenIdError),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A processor does not take its state.
    #[error("vcpu {id}")]
    Vcpu {
        /// The processor.
        id: u8,
        /// What it does not take.
        source: VcpuStateError,
    },
    /// The processors do not run.
    #[error(transparent)]
    Vcpus(#[from] VcpusError),
}

impl RestoreError {
    /// The kind that a client is told. What lies at the template is told apart: it must not be used again.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RestoreError::Descriptors(_) => ErrorKind::Invalid,
            RestoreError::Snapshot(_) | RestoreError::Memory(_) | RestoreError::Vcpu { .. } => {
                ErrorKind::Template
            }
            RestoreError::Devices(DevicesError::Restore(_) | DevicesError::Make(MakeError::Saved(_))) => {
                ErrorKind::Template
            }
            RestoreError::Vm(_) | RestoreError::Devices(DevicesError::Vm(_)) => ErrorKind::Kvm,
            RestoreError::Vcpus(error) => error.kind(),
            RestoreError::Root(_)
            | RestoreError::Devices(_)
            | RestoreError::VmGenId(_)
            | RestoreError::Bus(_) => ErrorKind::System,
        }
    }
}

/// The descriptors of a restore request, in their order.
struct RestoreFiles {
    kvm: OwnedFd,
    memory: File,
    state: File,
    root: OwnedFd,
    vsock: OwnedFd,
}

impl TryFrom<Vec<OwnedFd>> for RestoreFiles {
    type Error = RestoreError;

    fn try_from(fds: Vec<OwnedFd>) -> Result<Self, RestoreError> {
        let [kvm, memory, state, root, vsock] =
            <[OwnedFd; 5]>::try_from(fds).map_err(|fds| RestoreError::Descriptors(fds.len()))?;
        Ok(Self { kvm, memory: memory.into(), state: state.into(), root, vsock })
    }
}

/// Makes the clone of a template that was made from `built_from` and booted as a machine of `shape`, and lets
/// it run; its devices are served by `events`.
pub fn restore(
    built_from: &str,
    shape: Shape,
    files: Vec<OwnedFd>,
    events: &mut EventLoop,
) -> Result<Machine, RestoreError> {
    let files = RestoreFiles::try_from(files)?;
    let state = snapshot::read(&files.state, built_from, shape)?;
    let root = Root::new(files.root).map_err(RestoreError::Root)?;
    let exit = ExitHandle::new(events.stopper());
    let console = Arc::new(ConsoleLog::default());

    let backing = Backing::Clone { file: &files.memory, stretches: &state.stretches };
    let mut memory = memory::allocate(&layout::ram(state.memory_mib), backing)?;
    let region = layout::pluggable(state.memory_mib, state.max_memory_mib);
    if let Some(region) = region {
        memory = pluggable::add(&memory, region)?;
    }
    let vm = Arc::new(Vm::new(files.kvm, &memory)?);
    let mut machinery = Machinery { vm: &vm, memory: &memory, events, exit: &exit };
    let backends = Backends { root, vsock: files.vsock, console: console.clone(), pluggable: region };
    let (bus, devices) = Devices::place(&mut machinery, backends, Some(&state.devices))?;
    let buses = Arc::new(Buses { memory: bus, ports: ports::bus(&exit, &console)? });

    let vmgenid = VmGenId::new(&memory)?;
    vm.route(vmgenid.changed(), layout::VMGENID_GSI)?;

    let nested = shape.nested_virtualization;
    let fds = created(&vm, &state.vcpus, nested)?;
    vm.restore(&state.vm)?;
    for (id, (fd, state)) in (0..).zip(fds.iter().zip(&state.vcpus)) {
        state.restore(fd).map_err(|source| RestoreError::Vcpu { id, source })?;
    }
    vmgenid.signal();
    devices.resume();
    let context = VcpuContext { vm: vm.clone(), buses, exit: exit.clone() };
    let claims = Claims { places: state.max_vcpus, nested };
    let vcpus = Vcpus::begin(&context, fds, claims)?;
    let size = MemorySize::new(state.memory_mib, state.max_memory_mib, devices.mem.clone());
    Ok(Machine { vm, vmgenid, devices, ram: memory, memory: size, console, vcpus, exit, template: None })
}

/// All processors are there before any has its state: their clocks are set against each other's.
fn created(vm: &Vm, states: &[VcpuState], nested: bool) -> Result<Vec<VcpuFd>, RestoreError> {
    let create = |(id, state): (u8, &VcpuState)| -> Result<VcpuFd, RestoreError> {
        let features = state.features(nested).map_err(|source| RestoreError::Vcpu { id, source })?;
        Ok(vm.create_vcpu(id, &features)?)
    };
    (0..).zip(states).map(create).collect()
}
