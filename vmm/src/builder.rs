//! Boot, top to bottom: from a configuration and descriptors to a machine that runs.
//!
//! ```text
//! memory -> vm (slots, interrupt controllers) -> devices on the bus -> ACPI tables, kernel, zero page in memory
//!        -> processors (cpuid, registers) -> threads
//! ```
//!
//! Called once, by `main`, with the answer of the control socket in hand. Nothing in here tells one pod from another. How a
//! clone is made instead is in [`crate::restore`].

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use isopod_protocols::vmm::{BootConfig, ErrorKind};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{
    acpi,
    bus::BusError,
    console_log::ConsoleLog,
    cpu::registers,
    devices::{Backends, Devices, DevicesError, Machinery},
    exit::ExitHandle,
    kernel::{self, KernelError},
    layout::{self, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB},
    machine::{Machine, Template},
    memory::{self, Backing, GuestMemory, MemoryError},
    pluggable::{self, MemorySize},
    ports,
    vcpu::Buses,
    vcpus::{Claims, Fresh, VcpuContext, Vcpus, VcpusError},
    virtio::{EventLoop, MakeError, block::Root},
    vm::{self, Vm, VmError},
    vmgenid::{VmGenId, VmGenIdError},
};

/// Why a machine does not run.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The request asks for something that no machine has.
    #[error("{what} must be from {least} to {most}, got {value}")]
    Range {
        /// The field.
        what: &'static str,
        /// Its smallest value.
        least: u32,
        /// Its largest value.
        most: u32,
        /// What was asked for.
        value: u32,
    },
    /// Memory is plugged in pieces of 2 MiB.
    #[error("max_memory_mib must be memory_mib or a multiple of 2, got {0}")]
    OddMaximum(u32),
    /// Not the descriptors that a boot needs.
    #[error(
        "boot needs 4 descriptors (/dev/kvm, kernel, guest root, vsock listener), that of a template a fifth (memory), got {0}"
    )]
    Descriptors(usize),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The virtual machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The VM's generation.
    #[error(transparent)]
    VmGenId(#[from] VmGenIdError),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Boot structures do not fit into guest memory.
    #[error("cannot write boot structures into guest memory")]
    Write(#[from] GuestMemoryError),
    /// The first processor does not take its registers.
    #[error("kvm cannot set {what} of the first vcpu")]
    Registers {
        /// Which of them.
        what: &'static str,
        /// The system's answer.
        source: kvm_ioctls::Error,
    },
    /// The processors.
    #[error(transparent)]
    Vcpus(#[from] VcpusError),
    /// The guest root cannot be measured.
    #[error("cannot examine the guest root")]
    Root(#[source] io::Error),
    /// The devices.
    #[error(transparent)]
    Devices(#[from] DevicesError),
}

impl BootError {
    /// The kind that a client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            BootError::Range { .. } | BootError::OddMaximum(_) => ErrorKind::Invalid,
            BootError::Descriptors(_) => ErrorKind::Invalid,
            BootError::Vm(_) | BootError::Registers { .. } => ErrorKind::Kvm,
            BootError::Vcpus(error) => error.kind(),
            BootError::Devices(DevicesError::Vm(_)) => ErrorKind::Kvm,
            BootError::Devices(DevicesError::Make(MakeError::Backend { .. })) => ErrorKind::Invalid,
            BootError::Kernel(KernelError::Word { .. } | KernelError::TooLong { .. }) => ErrorKind::Invalid,
            BootError::Kernel(_) => ErrorKind::Kernel,
            _ => ErrorKind::System,
        }
    }
}

/// The descriptors of a boot request, in their order.
pub struct BootFiles {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The kernel, an ELF file.
    pub kernel: OwnedFd,
    /// The guest root, an EROFS image.
    pub root: OwnedFd,
    /// A listening unix socket for connections from the host.
    pub vsock: OwnedFd,
}

impl TryFrom<Vec<OwnedFd>> for BootFiles {
    type Error = BootError;

    fn try_from(fds: Vec<OwnedFd>) -> Result<Self, BootError> {
        let [kvm, kernel, root, vsock] =
            <[OwnedFd; 4]>::try_from(fds).map_err(|fds| BootError::Descriptors(fds.len()))?;
        Ok(Self { kvm, kernel, root, vsock })
    }
}

/// Makes the machine of a pod and lets it run; its devices are served by `events`.
pub fn boot(config: &BootConfig, files: Vec<OwnedFd>, events: &mut EventLoop) -> Result<Machine, BootError> {
    build(config, BootFiles::try_from(files)?, None, events)
}

/// Makes the machine of a template: the last of `files` becomes its memory.
pub fn boot_template(
    config: &BootConfig,
    mut files: Vec<OwnedFd>,
    events: &mut EventLoop,
) -> Result<Machine, BootError> {
    let memory = files.pop().map(File::from);
    build(config, BootFiles::try_from(files)?, memory, events)
}

fn build(
    config: &BootConfig,
    files: BootFiles,
    template: Option<File>,
    events: &mut EventLoop,
) -> Result<Machine, BootError> {
    check(config)?;
    let root = Root::new(files.root).map_err(BootError::Root)?;
    let command_line = kernel::command_line(root.sectors, config.vcpus, &config.kernel_args)?;
    let exit = ExitHandle::new(events.stopper());
    let console = Arc::new(ConsoleLog::default());

    let ram = layout::ram(config.memory_mib);
    let backing = match &template {
        Some(file) => Backing::Template(file),
        None => Backing::Fresh { huge_pages: config.huge_pages },
    };
    let mut memory = memory::allocate(&ram, backing)?;
    let region = layout::pluggable(config.memory_mib, config.max_memory_mib);
    if let Some(region) = region {
        memory = pluggable::add(&memory, region)?;
    }
    let vm = Arc::new(Vm::new(files.kvm, &memory)?);
    let mut machinery = Machinery { vm: &vm, memory: &memory, events, exit: &exit };
    let backends = Backends { root, vsock: files.vsock, console: console.clone(), pluggable: region };
    let (bus, devices) = Devices::place(&mut machinery, backends, None)?;
    let buses = Arc::new(Buses { memory: bus, ports: ports::bus(&exit, &console)? });

    let tables = acpi::tables(layout::ACPI, config.max_vcpus, &devices.slots());
    memory.write_slice(&tables, GuestAddress(layout::ACPI))?;
    let vmgenid = VmGenId::new(&memory)?;
    vm.route(vmgenid.changed(), layout::VMGENID_GSI)?;
    kernel::write_boot_parameters(&memory, &command_line, &ram)?;
    let entry = kernel::load(&memory, files.kernel.into())?;

    let fds = boot_vcpus(&vm, config, &memory, entry)?;
    let context = VcpuContext { vm: vm.clone(), buses, exit: exit.clone() };
    // A template gets no more: its clones do.
    let places = if template.is_some() { config.vcpus } else { config.max_vcpus };
    let nested = config.nested_virtualization;
    let vcpus = Vcpus::begin(&context, fds, Claims { places, nested })?;
    let (memory_mib, max_memory_mib) = (config.memory_mib, config.max_memory_mib);
    let size = MemorySize::new(memory_mib, max_memory_mib, devices.mem.clone());
    let max_vcpus = config.max_vcpus;
    let template = template.map(|memory| Template { memory, memory_mib, max_memory_mib, max_vcpus, nested });
    Ok(Machine { vm, vmgenid, devices, ram: memory, memory: size, console, vcpus, exit, template })
}

fn check(config: &BootConfig) -> Result<(), BootError> {
    let range = |what, least, most, value: u32| {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(BootError::Range { what, least, most, value })
    };
    range("vcpus", 1, MAX_VCPUS.into(), config.vcpus.into())?;
    range("max_vcpus", config.vcpus.into(), MAX_VCPUS.into(), config.max_vcpus.into())?;
    let (memory_mib, most) = (config.memory_mib, config.max_memory_mib);
    range("memory_mib", MIN_MEMORY_MIB, MAX_MEMORY_MIB, memory_mib)?;
    range("max_memory_mib", memory_mib, MAX_MEMORY_MIB, most)?;
    if most != memory_mib && !most.is_multiple_of(2) {
        return Err(BootError::OddMaximum(most));
    }
    Ok(())
}

/// Makes the processors that the machine begins with. The first starts at the kernel's entry, the others wait for it.
fn boot_vcpus(
    vm: &Vm,
    config: &BootConfig,
    memory: &GuestMemory,
    entry: u64,
) -> Result<Vec<VcpuFd>, BootError> {
    let claims = Claims { places: config.max_vcpus, nested: config.nested_virtualization };
    let fresh = Fresh::new(vm, claims)?;
    vm::check_address_bits(fresh.supported(), memory_end(memory))?;
    registers::write_tables(memory)?;
    let fds = (0..config.vcpus).map(|id| fresh.vcpu(id)).collect::<Result<Vec<_>, _>>()?;
    let refused = |what| move |source| BootError::Registers { what, source };
    let sregs = fds[0].get_sregs().map_err(refused("the special registers"))?;
    fds[0].set_sregs(&registers::special(sregs)).map_err(refused("the special registers"))?;
    fds[0].set_regs(&registers::general(entry)).map_err(refused("the registers"))?;
    Ok(fds)
}

fn memory_end(memory: &GuestMemory) -> u64 {
    use vm_memory::{Address, GuestMemoryBackend};
    memory.last_addr().raw_value() + 1
}
