//! A clone of a template, top to bottom: from its memory and its saved state to a machine that runs.
//!
//! ```text
//! state file -> memory (private, shown from the template's) -> vm (slots, interrupt controllers) -> devices on the bus
//!   -> state of vm and processors -> another generation -> devices go on -> threads
//! ```
//!
//! The counterpart of [`crate::builder`], called by `main` in its place. What makes the clone another machine than its
//! siblings: its [`crate::generation`], at which the kernel seeds its random numbers anew, and right after that the fresh
//! random bytes to which alone the agent gives its first answer (`isopod_protocols::agent`).

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use isopod_protocols::vmm::{ErrorKind, Shape};
use kvm_ioctls::VcpuFd;

use crate::{
    bus::BusError,
    console_log::ConsoleLog,
    cpu::state::{VcpuState, VcpuStateError},
    devices::{Backends, Devices, DevicesError, Machinery},
    end::Ending,
    generation::{Generation, GenerationError},
    layout,
    machine::Machine,
    memory::{self, Backing, MemoryError},
    pluggable::{self, MemorySize},
    ports,
    processors::{Claims, Processors, ProcessorsError, Surroundings},
    saved::{self, SavedError},
    vcpu::Buses,
    virtio::{EventLoop, MakeError, block::Root},
    vm::{Vm, VmError},
};

/// Why there is no clone.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// Not the descriptors that a clone needs.
    #[error(
        "a clone needs 5 descriptors (/dev/kvm, the template's memory and state, guest root, vsock listener), got {0}"
    )]
    Descriptors(usize),
    /// The template's state.
    #[error(transparent)]
    Saved(#[from] SavedError),
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
    Generation(#[from] GenerationError),
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
    Processors(#[from] ProcessorsError),
}

impl CloneError {
    /// The kind that a client is told. What lies at the template is told apart: it must not be used again.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CloneError::Descriptors(_) => ErrorKind::Invalid,
            CloneError::Saved(_) | CloneError::Memory(_) | CloneError::Vcpu { .. } => ErrorKind::Template,
            CloneError::Devices(DevicesError::Restore(_) | DevicesError::Make(MakeError::Saved(_))) => {
                ErrorKind::Template
            }
            CloneError::Vm(_) | CloneError::Devices(DevicesError::Vm(_)) => ErrorKind::Kvm,
            CloneError::Processors(error) => error.kind(),
            CloneError::Root(_) | CloneError::Devices(_) | CloneError::Generation(_) | CloneError::Bus(_) => {
                ErrorKind::System
            }
        }
    }
}

/// The descriptors of a restore request, in their order.
struct CloneFiles {
    kvm: OwnedFd,
    memory: File,
    state: File,
    root: OwnedFd,
    vsock: OwnedFd,
}

impl TryFrom<Vec<OwnedFd>> for CloneFiles {
    type Error = CloneError;

    fn try_from(fds: Vec<OwnedFd>) -> Result<Self, CloneError> {
        let [kvm, memory, state, root, vsock] =
            <[OwnedFd; 5]>::try_from(fds).map_err(|fds| CloneError::Descriptors(fds.len()))?;
        Ok(Self { kvm, memory: memory.into(), state: state.into(), root, vsock })
    }
}

/// Makes the clone of a template that was made from `built_from` and booted as a machine of `shape`, and lets
/// it run; its devices are served by `events`.
pub fn clone(
    built_from: &str,
    shape: Shape,
    files: Vec<OwnedFd>,
    events: &mut EventLoop,
) -> Result<Machine, CloneError> {
    let files = CloneFiles::try_from(files)?;
    let state = saved::read(&files.state, built_from, shape)?;
    let root = Root::new(files.root).map_err(CloneError::Root)?;
    let ending = Ending::new(events.stopper());
    let console = Arc::new(ConsoleLog::default());

    let backing = Backing::Clone { file: &files.memory, stretches: &state.stretches };
    let mut memory = memory::allocate(&layout::ram(state.memory_mib), backing)?;
    let region = layout::pluggable(state.memory_mib, state.max_memory_mib);
    if let Some(region) = region {
        memory = pluggable::add(&memory, region)?;
    }
    let vm = Arc::new(Vm::new(files.kvm, &memory)?);
    let mut machinery = Machinery { vm: &vm, memory: &memory, events, ending: &ending };
    let backends = Backends { root, vsock: files.vsock, console: console.clone(), pluggable: region };
    let (bus, devices) = Devices::place(&mut machinery, backends, Some(&state.devices))?;
    let buses = Arc::new(Buses { memory: bus, ports: ports::bus(&ending, &console)? });

    let generation = Generation::new(&memory)?;
    vm.route(generation.changed(), layout::GENERATION_GSI)?;

    let nested = shape.nested_virtualization;
    let fds = created(&vm, &state.vcpus, nested)?;
    vm.give(&state.vm)?;
    for (id, (fd, state)) in (0..).zip(fds.iter().zip(&state.vcpus)) {
        state.give(fd).map_err(|source| CloneError::Vcpu { id, source })?;
    }
    generation.signal();
    devices.resume();
    let around = Surroundings { vm: vm.clone(), buses, ending: ending.clone() };
    let claims = Claims { places: state.max_vcpus, nested };
    let processors = Processors::begin(&around, fds, claims)?;
    let size = MemorySize::new(state.memory_mib, state.max_memory_mib, devices.mem.clone());
    Ok(Machine {
        vm,
        generation,
        devices,
        ram: memory,
        memory: size,
        console,
        processors,
        ending,
        template: None,
    })
}

/// All processors are there before any has its state: their clocks are set against each other's.
fn created(vm: &Vm, states: &[VcpuState], nested: bool) -> Result<Vec<VcpuFd>, CloneError> {
    let create = |(id, state): (u8, &VcpuState)| -> Result<VcpuFd, CloneError> {
        let features = state.features(nested).map_err(|source| CloneError::Vcpu { id, source })?;
        Ok(vm.create_vcpu(id, &features)?)
    };
    (0..).zip(states).map(create).collect()
}
