//! The machine's devices: made, or built from what was saved of them, placed on the bus at the addresses of
//! [`crate::layout`], wired to KVM and to the event loop. Called by the builder and by `clone`; afterwards the machine reaches
//! into them for clients' requests.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc, thread};

use serde::{Deserialize, Serialize};

use crate::{
    bus::{Bus, BusError},
    confined::{self, ThreadError},
    console_log::ConsoleLog,
    end::{Ending, VmExit},
    layout::{DeviceSlot, Range},
    memory::GuestMemory,
    seccomp::{Filter, SeccompError, Stage},
    virtio::{
        Counter, EventLoop, Poller, VirtioDevice,
        balloon::{Balloon, BalloonState},
        block::{Disk, DiskState, ExtentError, ExtentState, Extents, Worker},
        console::{Console, ConsoleState},
        mem::{Mem, MemState},
        mmio::{MMIO_LENGTH, MmioTransport, OnFailure, RestoreError, SavedDevice, Surroundings},
        net::{Net, NetState},
        rng::{Rng, RngState},
        vsock::{Vsock, VsockState},
    },
    vm::{Vm, VmError},
};

/// Why a device is not there.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// KVM refused the wiring.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The bus refused the place.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The guest root cannot be the first extent.
    #[error("cannot attach the guest root")]
    Root(#[source] ExtentError),
    /// The system refused a descriptor.
    #[error("cannot make a device's events")]
    Events(#[from] io::Error),
    /// The filter of the disk's worker.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The disk's worker did not start.
    #[error("cannot start the disk's worker")]
    Worker(#[from] ThreadError),
    /// A device cannot be built from its state.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The saved disk is not that of a guest with its root alone.
    #[error("the template's disk does not hold the guest root that was given, and nothing else")]
    SavedRoot,
    /// The saved memory device is not that of a guest that has not grown.
    #[error("the template's memory device is not that of a guest with the memory it booted with")]
    SavedMemory,
}

/// All that is saved of the devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    block: SavedDevice<DiskState>,
    vsock: SavedDevice<VsockState>,
    console: SavedDevice<ConsoleState>,
    rng: SavedDevice<RngState>,
    net: SavedDevice<NetState>,
    balloon: SavedDevice<BalloonState>,
    mem: Option<SavedDevice<MemState>>,
}

/// The devices.
pub struct Devices {
    block: Arc<MmioTransport<Disk>>,
    console: Arc<MmioTransport<Console>>,
    rng: Arc<MmioTransport<Rng>>,
    balloon: Arc<MmioTransport<Balloon>>,
    /// The pod's disk.
    pub extents: Arc<Extents>,
    /// Does what takes long on the disk's files.
    pub disk_worker: Arc<Worker>,
    /// Bytes the guest read from it.
    pub disk_read: Counter,
    /// Bytes the guest wrote to it.
    pub disk_written: Counter,
    /// Where the guest's connections go.
    pub vsock: Arc<MmioTransport<Vsock>>,
    /// Open connections.
    pub vsock_connections: Counter,
    /// The network card, which waits for its tap.
    pub net: Arc<MmioTransport<Net>>,
    /// Bytes the card received.
    pub net_received: Counter,
    /// Bytes the card sent.
    pub net_sent: Counter,
    /// Bytes of memory that the guest gave back.
    pub reclaimed: Counter,
    /// Memory that is plugged after boot, where the machine may grow.
    pub mem: Option<Arc<MmioTransport<Mem>>>,
}

const SECTOR: u64 = 512;

/// The guest's own root, which becomes the first extent of the disk.
pub struct Root {
    file: File,
    /// Its size in sectors of 512 bytes, the last of which may be partial.
    pub sectors: u64,
}

impl Root {
    /// Measures the image.
    pub fn new(image: OwnedFd) -> io::Result<Self> {
        let file = File::from(image);
        let sectors = file.metadata()?.len().div_ceil(SECTOR);
        Ok(Self { file, sectors })
    }

    /// A disk with the image as its first extent.
    fn first_extent(self) -> Result<Extents, ExtentError> {
        let extents = Extents::new();
        extents.attach(self.file.into(), self.sectors * SECTOR, true)?;
        Ok(extents)
    }

    /// A saved disk, whose only extent must be an image of this size.
    fn saved_extents(self, saved: &DiskState) -> Result<Extents, DevicesError> {
        let root = ExtentState { offset: 0, length: self.sectors * SECTOR, read_only: true };
        if saved.extents != [root] {
            return Err(DevicesError::SavedRoot);
        }
        Extents::restore(&saved.extents, vec![self.file.into()]).map_err(DevicesError::Root)
    }
}

/// What devices are placed into.
pub struct Machinery<'a> {
    /// Wired to KVM here.
    pub vm: &'a Vm,
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// Serves the devices.
    pub events: &'a mut EventLoop,
    /// Told when a device gives up on its guest.
    pub ending: &'a Ending,
}

impl Machinery<'_> {
    /// Makes all devices and the bus that they are on, as they were `saved` where that is given. `root` becomes the first
    /// extent of the disk, or is the one that it has. Memory is plugged into `pluggable`, if there is such a region.
    pub fn place_all(
        &mut self,
        root: Root,
        vsock_listener: OwnedFd,
        console: &Arc<ConsoleLog>,
        pluggable: Option<Range>,
        saved: Option<&DevicesState>,
    ) -> Result<(Bus, Devices), DevicesError> {
        let mut bus = Bus::new();
        let extents = Arc::new(match saved {
            Some(saved) => root.saved_extents(&saved.block.device)?,
            None => root.first_extent().map_err(DevicesError::Root)?,
        });
        let disk_worker = start_worker(&extents)?;
        let block = saved.map(|s| &s.block);
        let block = self.place(&mut bus, DeviceSlot::Block, block, |poller| {
            Disk::new(extents.clone(), disk_worker.clone(), poller)
        })?;
        let (disk_read, disk_written) = block.with(|disk| (disk.read_bytes(), disk.written_bytes()));

        let vsock = saved.map(|s| &s.vsock);
        let vsock = self.place(&mut bus, DeviceSlot::Vsock, vsock, |poller| match vsock {
            Some(saved) => Vsock::restore(&saved.device, vsock_listener, poller.clone()),
            None => Vsock::new(vsock_listener, poller.clone()),
        })?;
        let vsock_connections = vsock.with(|vsock| vsock.open_connections());

        let record = console.clone();
        let output = Arc::new(move |bytes: &[u8]| record.append(bytes));
        let console = self
            .place(&mut bus, DeviceSlot::Console, saved.map(|s| &s.console), |_| Ok(Console::new(output)))?;
        let rng = self.place(&mut bus, DeviceSlot::Rng, saved.map(|s| &s.rng), |_| Ok(Rng::new()))?;

        let net = saved.map(|s| &s.net);
        let net = self.place(&mut bus, DeviceSlot::Net, net, |poller| Ok(Net::new(poller.clone())))?;
        let (net_received, net_sent) = net.with(|net| (net.received_bytes(), net.sent_bytes()));

        let saved_balloon = saved.map(|s| &s.balloon);
        let balloon = Balloon::restore(saved_balloon.map(|s| s.device.clone()).unwrap_or_default());
        let reclaimed = balloon.reclaimed_bytes();
        let balloon = self.place(&mut bus, DeviceSlot::Balloon, saved_balloon, |_| Ok(balloon))?;

        let mem = match (pluggable, saved.map(|s| &s.mem)) {
            (None, None | Some(None)) => None,
            (Some(region), None) => {
                Some(self.place(&mut bus, DeviceSlot::Mem, None, |_| Ok(Mem::new(region)))?)
            }
            (Some(region), Some(Some(saved))) if saved.device == MemState::unplugged(region) => {
                Some(self.place(&mut bus, DeviceSlot::Mem, Some(saved), |_| Ok(Mem::new(region)))?)
            }
            _ => return Err(DevicesError::SavedMemory),
        };
        let devices = Devices {
            block,
            console,
            rng,
            balloon,
            extents,
            disk_worker,
            disk_read,
            disk_written,
            vsock,
            vsock_connections,
            net,
            net_received,
            net_sent,
            reclaimed,
            mem,
        };
        Ok((bus, devices))
    }

    /// Makes one device and wires it.
    fn place<D: VirtioDevice>(
        &mut self,
        bus: &mut Bus,
        slot: DeviceSlot,
        saved: Option<&SavedDevice<D::State>>,
        make: impl FnOnce(&Poller) -> io::Result<D>,
    ) -> Result<Arc<MmioTransport<D>>, DevicesError> {
        let poller = self.events.poller();
        let device = make(&poller)?;
        let on_failure = self.on_failure();
        let around = Surroundings { memory: self.memory.clone(), poller: poller.clone(), on_failure };
        let transport = Arc::new(match saved {
            Some(saved) => MmioTransport::restore(device, saved, around)?,
            None => MmioTransport::new(device, around)?,
        });
        self.events.subscribe(&poller, transport.clone());
        self.vm.wire(slot, &transport.kick_events()?, transport.interrupt().event())?;
        bus.insert(slot.address(), MMIO_LENGTH, transport.clone())?;
        Ok(transport)
    }

    fn on_failure(&self) -> OnFailure {
        let ending = self.ending.clone();
        Arc::new(move |error| ending.end(VmExit::Device(error)))
    }
}

/// Starts the thread of the disk's worker, confined. It ends with the process.
fn start_worker(extents: &Arc<Extents>) -> Result<Arc<Worker>, DevicesError> {
    /// Bytes: no call here goes deep.
    const STACK: usize = 64 << 10;
    let worker = Arc::new(Worker::new()?);
    let filter = Filter::new(Stage::Disk)?;
    let thread = thread::Builder::new().name("disk".into()).stack_size(STACK);
    let (serving, extents) = (worker.clone(), extents.clone());
    confined::spawn(thread, filter, move || serving.serve(&extents))?;
    Ok(worker)
}

impl Devices {
    /// All that is to be saved. The processors must be stopped.
    pub fn save(&self) -> DevicesState {
        DevicesState {
            block: self.block.save(),
            vsock: self.vsock.save(),
            console: self.console.save(),
            rng: self.rng.save(),
            net: self.net.save(),
            balloon: self.balloon.save(),
            mem: self.mem.as_ref().map(|mem| mem.save()),
        }
    }

    /// Lets all devices go on that were built from what was saved. The interrupt controllers must have their state.
    pub fn resume(&self) {
        self.block.resume();
        self.vsock.resume();
        self.console.resume();
        self.rng.resume();
        self.net.resume();
        self.balloon.resume();
        if let Some(mem) = &self.mem {
            mem.resume();
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl DevicesState {
    /// As devices are that no driver has found.
    pub fn example() -> Self {
        use crate::virtio::mmio::Registers;
        fn new<S>(device: S) -> SavedDevice<S> {
            let registers = Registers::default();
            SavedDevice { registers, interrupt_causes: 0, config_generation: 0, rings: Vec::new(), device }
        }
        Self {
            block: new(DiskState { extents: Vec::new() }),
            vsock: new(VsockState { next_host_port: 0 }),
            console: new(ConsoleState {}),
            rng: new(RngState {}),
            net: new(NetState {}),
            balloon: new(BalloonState::default()),
            mem: None,
        }
    }
}
