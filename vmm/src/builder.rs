//! Boot, top to bottom: from a configuration and descriptors to a machine that runs.
//!
//! ```text
//! memory -> vm (slots, interrupt controllers) -> devices on the bus -> ACPI tables, kernel, zero page in memory
//!        -> processors (cpuid, registers) -> threads
//! ```
//!
//! Called once, by `main`, with the answer of the control socket in hand. Nothing in here tells one pod from another. How a
//! clone is made instead is in [`crate::clone`].

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use isopod_protocols::vmm::{BootConfig, ErrorKind};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{
    acpi,
    bus::{Bus, BusError},
    console_log::ConsoleLog,
    cpu::{
        cpuid::{self, Place},
        registers,
    },
    devices::{DevicesError, Machinery, Root},
    early_console::{self, EarlyConsole},
    end::Ending,
    generation::{Generation, GenerationError},
    kernel::{self, KernelError},
    layout::{self, DeviceSlot},
    machine::{Machine, Template},
    memory::{self, Backing, MemoryError},
    pluggable::{self, MemorySize},
    power::{self, Power},
    seccomp::{Filter, SeccompError, Stage},
    vcpu::{Buses, Vcpu, VcpuError, VcpuThreads},
    virtio::{EventLoop, GuestMemory},
    vm::{self, Vm, VmError},
};

/// Most processors of a machine.
const MAX_VCPUS: u8 = 64;
/// Least memory that a kernel boots in, MiB.
const MIN_MEMORY_MIB: u32 = 64;
/// Most memory of a machine, MiB.
const MAX_MEMORY_MIB: u32 = 1 << 20;

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
    Generation(#[from] GenerationError),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Boot structures do not fit into guest memory.
    #[error("cannot write boot structures into guest memory")]
    Write(#[from] GuestMemoryError),
    /// A processor's state was refused.
    #[error("kvm cannot set {what} of vcpu {id}")]
    Processor {
        /// Which state.
        what: &'static str,
        /// The processor.
        id: u8,
        /// The system's answer.
        source: kvm_ioctls::Error,
    },
    /// KVM gave an impossible list of processor features or registers.
    #[error("processor state is too large")]
    State(#[from] vmm_sys_util::fam::Error),
    /// The seccomp filter of the processors.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The processors' threads.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
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
            BootError::Vm(_) | BootError::Processor { .. } => ErrorKind::Kvm,
            BootError::Devices(DevicesError::Vm(_)) => ErrorKind::Kvm,
            BootError::Devices(DevicesError::Root(_)) => ErrorKind::Invalid,
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
    let command_line = kernel::command_line(root.sectors, &config.kernel_args)?;
    let ending = Ending::new(events.stopper());
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
    let vm = Vm::new(files.kvm, &memory)?;
    let mut machinery = Machinery { vm: &vm, memory: &memory, events, ending: &ending };
    let (bus, devices) = machinery.place_all(root, files.vsock, &console, region, None)?;
    let buses = Arc::new(Buses { memory: bus, ports: ports(&ending, &console)? });

    let slots = DeviceSlot::of_machine(region.is_some());
    memory.write_slice(&acpi::tables(layout::ACPI, config.vcpus, &slots), GuestAddress(layout::ACPI))?;
    let generation = Generation::new(&memory)?;
    vm.route(generation.changed(), layout::GENERATION_GSI)?;
    kernel::write_boot_parameters(&memory, &command_line, &ram)?;
    let entry = kernel::load(&memory, files.kernel.into())?;

    let fds = processors(&vm, config.vcpus, &memory, entry)?;
    let vcpus = run(fds, &buses, &ending)?;
    let (memory_mib, max_memory_mib) = (config.memory_mib, config.max_memory_mib);
    let memory = MemorySize::new(memory_mib, max_memory_mib, devices.mem.clone());
    let template = template.map(|memory| Template { memory, memory_mib, max_memory_mib });
    Ok(Machine { vm, generation, devices, memory, console, vcpus: Mutex::new(vcpus), ending, template })
}

/// Lets processors run, each on a thread.
pub fn run(fds: Vec<VcpuFd>, buses: &Arc<Buses>, ending: &Ending) -> Result<VcpuThreads, BootError> {
    let vcpu = |(id, fd)| Vcpu { id, fd, buses: buses.clone(), ending: ending.clone() };
    let vcpus = (0..).zip(fds).map(vcpu).collect();
    Ok(VcpuThreads::spawn(vcpus, &Filter::new(Stage::Vcpu)?)?)
}

fn check(config: &BootConfig) -> Result<(), BootError> {
    let range = |what, least, most, value: u32| {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(BootError::Range { what, least, most, value })
    };
    range("vcpus", 1, MAX_VCPUS.into(), config.vcpus.into())?;
    let (memory_mib, most) = (config.memory_mib, config.max_memory_mib);
    range("memory_mib", MIN_MEMORY_MIB, MAX_MEMORY_MIB, memory_mib)?;
    range("max_memory_mib", memory_mib, MAX_MEMORY_MIB, most)?;
    if most != memory_mib && !most.is_multiple_of(2) {
        return Err(BootError::OddMaximum(most));
    }
    Ok(())
}

/// The devices at I/O ports: none of them has anything to save.
pub fn ports(ending: &Ending, console: &Arc<ConsoleLog>) -> Result<Bus, BusError> {
    let mut ports = Bus::new();
    ports.insert(power::BASE, power::LENGTH, Arc::new(Power::new(ending.clone())))?;
    let early = Arc::new(EarlyConsole::new(console.clone()));
    ports.insert(layout::EARLY_CONSOLE_PORT.into(), early_console::LENGTH, early)?;
    Ok(ports)
}

/// Makes all processors. The first starts at the kernel's entry, the others wait for it.
fn processors(vm: &Vm, count: u8, memory: &GuestMemory, entry: u64) -> Result<Vec<VcpuFd>, BootError> {
    let supported = vm.supported_cpuid()?;
    let end = memory_end(memory);
    vm::check_address_bits(&supported, end)?;
    registers::write_tables(memory)?;
    let msrs = registers::model_specific()?;
    let mut fds = Vec::with_capacity(count.into());
    for id in 0..count {
        let fd = vm.create_vcpu(id)?;
        let refused = |what| move |source| BootError::Processor { what, id, source };
        let cpuid = cpuid::for_vcpu(&supported, Place { id, vcpus: count })?;
        fd.set_cpuid2(&cpuid).map_err(refused("the features"))?;
        fd.set_msrs(&msrs).map_err(refused("the model-specific registers"))?;
        fd.set_fpu(&registers::floating_point()).map_err(refused("the floating point unit"))?;
        if id == 0 {
            let sregs = fd.get_sregs().map_err(refused("the special registers"))?;
            fd.set_sregs(&registers::special(sregs)).map_err(refused("the special registers"))?;
            fd.set_regs(&registers::general(entry)).map_err(refused("the registers"))?;
        }
        fds.push(fd);
    }
    Ok(fds)
}

fn memory_end(memory: &GuestMemory) -> u64 {
    use vm_memory::{Address, GuestMemoryBackend};
    memory.last_addr().raw_value() + 1
}
