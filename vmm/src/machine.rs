//! A running virtual machine, and what each request means to it. Made by the builder, called by the control server.

use std::{fs::File, os::fd::OwnedFd, sync::Arc};

use isopod_protocols::vmm::{ErrorKind, Extent, Request, Response, Stats};

use crate::{
    console_log::ConsoleLog,
    control::error,
    cpu::state::{VcpuState, VcpuStateError},
    devices::Devices,
    exit::{ExitHandle, VmExit},
    memory::{self, GuestMemory, MemoryError},
    pluggable::MemorySize,
    snapshot::{self, MAX_BUILT_FROM, MachineState, SnapshotError},
    vcpu::Vcpu,
    vcpus::Vcpus,
    virtio::block::ExtentError,
    vm::{Vm, VmError},
    vmgenid::VmGenId,
    working_set::{self, Rehearsed, WorkingSetError},
};

/// A running VM.
pub struct Machine {
    /// Kept open as long as the guest runs.
    pub vm: Arc<Vm>,
    /// What tells the guest that it is another copy, kept for as long as the guest runs.
    pub vmgenid: VmGenId,
    /// What requests reach of the devices.
    pub devices: Devices,
    /// The guest's memory.
    pub ram: GuestMemory,
    /// How much of it the guest has and may have.
    pub memory: MemorySize,
    /// The guest's console output.
    pub console: Arc<ConsoleLog>,
    /// The processors.
    pub vcpus: Vcpus,
    /// Why the VM ended, once it has.
    pub exit: ExitHandle,
    /// Set where it is to become a template.
    pub template: Option<Template>,
}

/// What a template is made of beside its state.
pub struct Template {
    /// The guest's memory.
    pub memory: File,
    /// Its size in MiB.
    pub memory_mib: u32,
    /// What it may grow to, MiB.
    pub max_memory_mib: u32,
    /// Most processors of a clone.
    pub max_vcpus: u8,
    /// Its guests may run VMs of their own.
    pub nested: bool,
}

/// Why a machine cannot be saved.
#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error("only a vm that was booted as a template can be saved")]
    NoTemplate,
    #[error("what it was made from takes {0} bytes; at most {MAX_BUILT_FROM} are kept")]
    BuiltFrom(usize),
    #[error("the guest has {0} vsock connections: close them before it is saved")]
    Connections(u64),
    #[error("the disk has {0} extents: detach all but the guest's root before it is saved")]
    Extents(usize),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("vcpu {id}: {source}")]
    Vcpu { id: u8, source: VcpuStateError },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    File(#[from] SnapshotError),
}

impl Machine {
    /// Does what a client asks for.
    pub fn handle(&self, request: Request, fds: Vec<OwnedFd>) -> Response {
        self.serve(request, fds).unwrap_or_else(|refusal| refusal)
    }

    fn serve(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Response, Response> {
        let devices = &self.devices;
        match request {
            Request::Boot(_) | Request::BootTemplate(_) | Request::Restore { .. } => {
                return Err(error(ErrorKind::State, "the vm runs already: a vmm boots once"));
            }
            Request::Save { built_from } => self.save(&built_from, one(fds)?.into()).map_err(save_refused)?,
            Request::Rehearsed {} => {
                let Rehearsed { pages, large_pages, refused_large_pages } =
                    working_set::rehearsed(&self.ram, &one(fds)?.into()).map_err(working_set_failed)?;
                return Ok(Response::WorkingSet { pages, large_pages, refused_large_pages });
            }
            Request::Populate { pages } => {
                working_set::populate(&self.ram, &pages).map_err(working_set_failed)?;
            }
            Request::ResizeMemory { memory_mib } => {
                self.memory.resize(memory_mib).map_err(|e| error(ErrorKind::Invalid, e))?;
            }
            Request::AddVcpus { vcpus } => self.vcpus.grow(vcpus).map_err(|e| error(e.kind(), e))?,
            Request::AttachExtent { length, read_only } => {
                let file = one(fds)?;
                let attached = devices.block.with(|disk| disk.extents().attach(file, length, read_only));
                return Ok(Response::Extent { offset: attached.map_err(extent_refused)? });
            }
            Request::DetachExtent { offset: 0 } => {
                return Err(error(
                    ErrorKind::Invalid,
                    "the extent at offset 0 is the guest's own root and stays",
                ));
            }
            Request::DetachExtent { offset } => {
                devices.block.with(|disk| disk.detach(offset)).map_err(extent_refused)?;
            }
            Request::ListExtents {} => return Ok(Response::Extents { extents: self.extents() }),
            Request::AttachTap {} => {
                let tap = one(fds)?;
                devices.net.with(|net| net.attach(tap)).map_err(|e| error(ErrorKind::Invalid, e))?;
            }
            Request::ListenVsock { port } => {
                let acceptor = one(fds)?;
                let listening = devices.vsock.with(|vsock| vsock.listen(port, acceptor));
                listening.map_err(|e| error(ErrorKind::State, e))?;
            }
            Request::Stats {} => return Ok(Response::Stats(self.stats())),
            Request::Console {} => return Ok(Response::Console { text: self.console.tail() }),
            Request::Stop {} => self.exit.end(VmExit::Stopped),
        }
        Ok(Response::Done {})
    }

    /// Brings the processors back from the guest: from here on nothing of the guest runs.
    pub fn stop(&self) {
        self.vcpus.threads().stop();
    }

    /// Stops the processors, writes all state to `file` and ends the VM. Where it is refused before the processors stop, the
    /// guest runs on.
    fn save(&self, built_from: &str, file: File) -> Result<(), SaveError> {
        let template = self.template.as_ref().ok_or(SaveError::NoTemplate)?;
        if built_from.len() > MAX_BUILT_FROM {
            return Err(SaveError::BuiltFrom(built_from.len()));
        }
        let connections = self.devices.vsock.with(|vsock| vsock.open_connections().get());
        if connections > 0 {
            return Err(SaveError::Connections(connections));
        }
        let extents = self.devices.block.with(|disk| disk.extents().save().len());
        if extents != 1 {
            return Err(SaveError::Extents(extents));
        }
        self.vm.check_extended_state()?;
        let msrs = self.vm.msr_indices()?;

        let vcpus = self.vcpus.threads().stop();
        self.exit.end(VmExit::Saved);
        // First, as it lets flushes end that are under way, which writes to the guest's memory.
        let devices = self.devices.save();
        let save = |vcpu: Vcpu| {
            let id = vcpu.id;
            VcpuState::save(&vcpu.fd, &msrs).map_err(|source| SaveError::Vcpu { id, source })
        };
        let state = MachineState {
            memory_mib: template.memory_mib,
            max_memory_mib: template.max_memory_mib,
            max_vcpus: template.max_vcpus,
            nested: template.nested,
            stretches: memory::stretches(&template.memory)?,
            vm: self.vm.save()?,
            vcpus: vcpus.into_iter().map(save).collect::<Result<_, _>>()?,
            devices,
        };
        Ok(snapshot::write(&file, built_from, &state)?)
    }

    fn extents(&self) -> Vec<Extent> {
        let all = self.devices.block.with(|disk| disk.extents().save());
        all.iter().map(|extent| Extent { offset: extent.offset, read_only: extent.read_only }).collect()
    }

    fn stats(&self) -> Stats {
        let Devices { block, vsock, net, balloon, .. } = &self.devices;
        let (disk_read, disk_written) = block.with(|disk| (disk.read_bytes(), disk.written_bytes()));
        let (net_received, net_sent) = net.with(|net| (net.received_bytes(), net.sent_bytes()));
        let threads = self.vcpus.threads();
        Stats {
            exits: threads.exits(),
            disk_read_bytes: disk_read.get(),
            disk_write_bytes: disk_written.get(),
            net_rx_bytes: net_received.get(),
            net_tx_bytes: net_sent.get(),
            vsock_connections: vsock.with(|vsock| vsock.open_connections().get()),
            vcpus: threads.count(),
            memory_bytes: self.memory.bytes(),
            reclaimed_bytes: balloon.with(|balloon| balloon.reclaimed_bytes().get()),
        }
    }
}

/// The only descriptor of a request that needs one.
fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, Response> {
    let count = fds.len();
    let [fd] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|_| error(ErrorKind::Invalid, format!("the request needs 1 descriptor, got {count}")))?;
    Ok(fd)
}

fn save_refused(refusal: SaveError) -> Response {
    let kind = match refusal {
        SaveError::BuiltFrom(_) => ErrorKind::Invalid,
        SaveError::NoTemplate | SaveError::Connections(_) | SaveError::Extents(_) => ErrorKind::State,
        SaveError::Vm(_) | SaveError::Vcpu { .. } => ErrorKind::Kvm,
        SaveError::Memory(_) | SaveError::File(_) => ErrorKind::System,
    };
    error(kind, refusal)
}

fn working_set_failed(failure: WorkingSetError) -> Response {
    let kind = match failure {
        WorkingSetError::Guest(_) | WorkingSetError::Memory(MemoryError::Region(_)) => ErrorKind::Invalid,
        WorkingSetError::Scattered => ErrorKind::State,
        WorkingSetError::Template(_) | WorkingSetError::Memory(_) => ErrorKind::System,
    };
    error(kind, failure)
}

fn extent_refused(refusal: ExtentError) -> Response {
    let kind = match refusal {
        ExtentError::Full { .. } | ExtentError::Unknown(_) => ErrorKind::State,
        ExtentError::System(_) => ErrorKind::System,
        _ => ErrorKind::Invalid,
    };
    error(kind, refusal)
}
