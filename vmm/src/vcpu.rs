//! The virtual processors: one thread each, which runs the guest until it needs the VMM.
//!
//! ```text
//!            spawn                     end of the VM by any reason
//!  (built) --------> Running ---------------------------------------> joined
//!                     |   ^
//!       exit to MMIO, |   | answered by the bus
//!          port I/O   v   |
//!                    Handling
//! ```
//!
//! A thread ends when the VM has ended; the reason of an end that the guest caused goes to [`ExitHandle`].
//! Between exits a thread touches only the bus, so its seccomp filter is short.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::{
    bus::Bus,
    confined::{self, ThreadError},
    exit::{ExitHandle, VmExit},
    seccomp::Filter,
    sys,
};

/// What the processors reach outside of guest memory.
pub struct Buses {
    /// Devices at guest-physical addresses.
    pub memory: Bus,
    /// Devices at I/O ports.
    pub ports: Bus,
}

/// One processor, ready to run.
pub struct Vcpu {
    /// Its number and APIC id.
    pub id: u8,
    /// KVM's side of it.
    pub fd: VcpuFd,
    /// Where its exits go.
    pub buses: Arc<Buses>,
    /// Whom to tell when the guest ends.
    pub exit: ExitHandle,
}

/// The running processors.
pub struct VcpuThreads {
    threads: Vec<JoinHandle<Option<Vcpu>>>,
    stopping: Arc<AtomicBool>,
    exits: Vec<Arc<AtomicU64>>,
}

/// A processor's thread that cannot run the guest.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The system refused the handler of the signal by which it is brought back.
    #[error("cannot handle the signal that brings vcpus back")]
    Signal(#[source] io::Error),
    /// It has no thread.
    #[error("cannot start the thread of vcpu {id}")]
    Thread {
        /// The processor.
        id: u8,
        /// What failed.
        source: ThreadError,
    },
}

impl VcpuThreads {
    /// Starts all processors, each confined by `filter`. Returns when all run.
    pub fn spawn(vcpus: Vec<Vcpu>, filter: &Filter) -> Result<Self, VcpuError> {
        let mut running =
            Self { threads: Vec::new(), stopping: Arc::new(AtomicBool::new(false)), exits: Vec::new() };
        sys::prepare_kicks().map_err(VcpuError::Signal)?;
        for vcpu in vcpus {
            running.start(vcpu, filter.clone())?;
        }
        Ok(running)
    }

    /// Starts one more processor, confined by `filter`. Returns when it runs.
    pub fn start(&mut self, mut vcpu: Vcpu, filter: Filter) -> Result<(), VcpuError> {
        let id = vcpu.id;
        let exits = Arc::new(AtomicU64::new(0));
        self.exits.push(exits.clone());
        let stopping = self.stopping.clone();
        let body = move || {
            vcpu.run(&stopping, &exits);
            vcpu
        };
        let thread = thread::Builder::new().name(format!("vcpu{id}"));
        let thread = confined::spawn(thread, filter, body);
        self.threads.push(thread.map_err(|source| VcpuError::Thread { id, source })?);
        Ok(())
    }

    /// How many processors run.
    pub fn count(&self) -> u8 {
        self.threads.len() as u8
    }

    /// Exits from guest to VMM since boot, all processors.
    pub fn exits(&self) -> u64 {
        self.exits.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Brings all processors back from the guest, for good, and answers them in their order. A later call answers none.
    pub fn stop(&mut self) -> Vec<Vcpu> {
        self.stopping.store(true, Ordering::Release);
        self.threads.iter().for_each(sys::kick);
        // A thread that panicked has told so by the panic hook, which ends the process.
        self.threads.drain(..).filter_map(|thread| thread.join().ok().flatten()).collect()
    }
}

impl Vcpu {
    fn run(&mut self, stopping: &AtomicBool, exits: &AtomicU64) {
        sys::allow_kicks(&mut self.fd);
        while !stopping.load(Ordering::Acquire) {
            if let Some(reason) = self.run_to_exit() {
                self.exit.end(reason);
                break;
            }
            exits.fetch_add(1, Ordering::Relaxed);
        }
        sys::forbid_kicks();
        self.complete_exit();
    }

    /// Has KVM take the answer to the last exit, which it does at the next entry, and come back before the guest runs: from
    /// then on its state can be read (Documentation/virt/kvm/api.rst, 5, after `KVM_EXIT_MMIO`).
    fn complete_exit(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // Always "interrupted".
        let _ = self.fd.run();
    }

    /// Runs the guest up to its next exit and answers it. Says why, if it was the last.
    fn run_to_exit(&mut self) -> Option<VmExit> {
        let vcpu = self.id;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            // A kick, or a processor that has been woken before its start-up interrupt.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return None,
            Err(error) => return Some(VmExit::Run { vcpu, error }),
        };
        match exit {
            VcpuExit::MmioRead(address, data) => self.buses.memory.read(address, data),
            VcpuExit::MmioWrite(address, data) => self.buses.memory.write(address, data),
            VcpuExit::IoIn(port, data) => self.buses.ports.read(port.into(), data),
            VcpuExit::IoOut(port, data) => self.buses.ports.write(port.into(), data),
            VcpuExit::Intr => {}
            VcpuExit::Shutdown => return Some(VmExit::TripleFault { vcpu }),
            VcpuExit::FailEntry(reason, _) => return Some(VmExit::EntryFailed { vcpu, reason }),
            VcpuExit::InternalError => {
                let suberror = sys::internal_suberror(&mut self.fd);
                return Some(VmExit::InternalError { vcpu, suberror });
            }
            other => return Some(VmExit::Unexpected { vcpu, exit: format!("{other:?}") }),
        }
        None
    }
}
