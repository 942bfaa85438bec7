//! The processors of a machine: those that it begins with, and those that it is given while it runs.
//!
//! ```text
//! builder, restore --begin--> the first processors, a thread each
//! machine --grow--> thread "more-vcpus" --> the next processor, its thread      only where there may be more
//! ```
//!
//! The guest's tables list the places of all processors that the machine may ever have. One that is made
//! later waits in KVM until the guest's kernel sends it a start-up interrupt, which its agent has it do; it
//! is never taken away again.
//!
//! Making one takes system calls that must not be allowed to the event loop, which serves the guest. So a
//! thread sleeps for that from the start, with a filter of its own. It takes a number from the control socket
//! and nothing from the guest.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
};

use isopod_protocols::vmm::ErrorKind;
use kvm_bindings::{CpuId, Msrs};
use kvm_ioctls::VcpuFd;

use crate::{
    confined::{self, ThreadError},
    cpu::{
        cpuid::{self, Topology},
        registers,
    },
    exit::ExitHandle,
    seccomp::{Filter, SeccompError, Stage},
    vcpu::{Buses, Vcpu, VcpuError, VcpuThreads},
    vm::{Vm, VmError},
};

/// Why processors cannot be made, or do not run.
#[derive(Debug, thiserror::Error)]
pub enum VcpusError {
    /// KVM makes none.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A processor's state was refused.
    #[error("kvm cannot set {what} of vcpu {id}")]
    Refused {
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
    /// A filter cannot be made or installed.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// A processor's thread.
    #[error(transparent)]
    Thread(#[from] VcpuError),
    /// The thread that makes processors did not start.
    #[error("cannot start the thread that makes processors")]
    Maker(#[from] ThreadError),
    /// The thread that makes processors has ended.
    #[error("the thread that makes processors has ended")]
    Gone,
    /// As many as the machine can never have.
    #[error("vcpus must be at most {most} (the vm's max_vcpus), got {value}")]
    TooMany {
        /// Its `max_vcpus`.
        most: u8,
        /// What was asked for.
        value: u8,
    },
}

impl VcpusError {
    /// The kind that a client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooMany { .. } => ErrorKind::Invalid,
            Self::Vm(_) | Self::Refused { .. } | Self::State(_) => ErrorKind::Kvm,
            Self::Seccomp(_) | Self::Thread(_) | Self::Maker(_) | Self::Gone => ErrorKind::System,
        }
    }
}

/// Makes processors that have just been reset, for places of one machine.
pub struct Fresh<'a> {
    vm: &'a Vm,
    supported: CpuId,
    registers: Msrs,
    claims: Claims,
}

/// What all processors of one machine say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// Places for processors.
    pub places: u8,
    /// The guest may run VMs of its own.
    pub nested: bool,
}

impl<'a> Fresh<'a> {
    /// For a machine of which its processors make these claims.
    pub fn new(vm: &'a Vm, claims: Claims) -> Result<Self, VcpusError> {
        Ok(Self { vm, supported: vm.supported_cpuid()?, registers: registers::model_specific()?, claims })
    }

    /// What KVM lets this host's guests have.
    pub fn supported(&self) -> &CpuId {
        &self.supported
    }

    /// Makes processor number `id`. But for the first, it waits for its start-up interrupt.
    pub fn vcpu(&self, id: u8) -> Result<VcpuFd, VcpusError> {
        let refused = |what| move |source| VcpusError::Refused { what, id, source };
        let Claims { places: vcpus, nested } = self.claims;
        let features = cpuid::for_vcpu(&self.supported, Topology { id, vcpus }, nested)?;
        let fd = self.vm.create_vcpu(id, &features)?;
        fd.set_msrs(&self.registers).map_err(refused("the model-specific registers"))?;
        fd.set_fpu(&registers::floating_point()).map_err(refused("the floating point unit"))?;
        Ok(fd)
    }
}

/// What every processor of a machine shares with its others.
#[derive(Clone)]
pub struct VcpuContext {
    /// The machine.
    pub vm: Arc<Vm>,
    /// Where exits go.
    pub buses: Arc<Buses>,
    /// Whom to tell when the guest ends.
    pub exit: ExitHandle,
}

impl VcpuContext {
    fn vcpu(&self, id: u8, fd: VcpuFd) -> Vcpu {
        Vcpu { id, fd, buses: self.buses.clone(), exit: self.exit.clone() }
    }
}

/// The vcpus of a machine, which run.
pub struct Vcpus {
    threads: Arc<Mutex<VcpuThreads>>,
    most: u8,
    /// None where there are as many as there may be.
    orders: Option<SyncSender<Order>>,
}

/// So many in all, and who waits for them.
struct Order {
    vcpus: u8,
    done: SyncSender<Result<(), VcpusError>>,
}

impl Vcpus {
    /// Lets the first processors run; there may be as many later as `claims` has places.
    pub fn begin(context: &VcpuContext, fds: Vec<VcpuFd>, claims: Claims) -> Result<Self, VcpusError> {
        let most = claims.places;
        let growable = fds.len() < most.into();
        let vcpus = (0..).zip(fds).map(|(id, fd)| context.vcpu(id, fd)).collect();
        let threads = VcpuThreads::spawn(vcpus, &Filter::new(Stage::Vcpu)?)?;
        let threads = Arc::new(Mutex::new(threads));
        let maker = || Maker { context: context.clone(), claims, threads: threads.clone() }.start();
        let orders = growable.then(maker).transpose()?;
        Ok(Self { threads, most, orders })
    }

    /// Makes processors until there are `vcpus`.
    ///
    /// # Errors
    /// Those that were made before one failed stay.
    pub fn grow(&self, vcpus: u8) -> Result<(), VcpusError> {
        if vcpus > self.most {
            return Err(VcpusError::TooMany { most: self.most, value: vcpus });
        }
        let Some(orders) = &self.orders else { return Ok(()) };
        let (done, made) = mpsc::sync_channel(1);
        orders.send(Order { vcpus, done }).map_err(|_| VcpusError::Gone)?;
        made.recv().map_err(|_| VcpusError::Gone)?
    }

    /// The threads of all that were made.
    pub fn threads(&self) -> MutexGuard<'_, VcpuThreads> {
        lock(&self.threads)
    }
}

fn lock(threads: &Mutex<VcpuThreads>) -> MutexGuard<'_, VcpuThreads> {
    threads.lock().expect("nobody panics with this lock")
}

/// What the thread that makes processors works with.
struct Maker {
    context: VcpuContext,
    claims: Claims,
    threads: Arc<Mutex<VcpuThreads>>,
}

impl Maker {
    /// Starts the thread, confined. It ends with the machine.
    fn start(self) -> Result<SyncSender<Order>, VcpusError> {
        /// Bytes: no call here goes deep.
        const STACK: usize = 64 << 10;
        let filter = Filter::new(Stage::MoreVcpus)?;
        let (orders, received) = mpsc::sync_channel::<Order>(1);
        let thread = thread::Builder::new().name("more-vcpus".into()).stack_size(STACK);
        confined::spawn(thread, filter, move || self.serve(&received))?;
        Ok(orders)
    }

    fn serve(&self, orders: &Receiver<Order>) {
        for order in orders {
            // Who asked waits for it.
            let _ = order.done.send(self.make(order.vcpus));
        }
    }

    fn make(&self, vcpus: u8) -> Result<(), VcpusError> {
        let mut threads = lock(&self.threads);
        if threads.count() >= vcpus {
            return Ok(());
        }
        let fresh = Fresh::new(&self.context.vm, self.claims)?;
        let filter = Filter::new(Stage::Vcpu)?;
        for id in threads.count()..vcpus {
            let fd = fresh.vcpu(id)?;
            make_known(&fd, id)?;
            threads.start(self.context.vcpu(id, fd), filter.clone())?;
        }
        Ok(())
    }
}

/// Has interrupts find a processor of a machine that runs. KVM looks destinations up in a table, which it
/// lays out when a processor is made, shortly before that one counts, and again at certain changes, such as
/// this one of the local APIC. While a machine boots, its processors see to that themselves.
fn make_known(fd: &VcpuFd, id: u8) -> Result<(), VcpusError> {
    let refused = |what| move |source| VcpusError::Refused { what, id, source };
    let local_apic = fd.get_lapic().map_err(refused("the local apic"))?;
    fd.set_lapic(&local_apic).map_err(refused("the local apic"))
}
