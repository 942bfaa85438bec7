//! The machine's devices: made, placed on the bus at the addresses of [`crate::layout`], wired to KVM and to the event
//! loop. Called by the builder; afterwards the machine reaches into them for clients' requests.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use crate::{
    bus::{Bus, BusError},
    console_log::ConsoleLog,
    end::{Ending, VmExit},
    layout::DeviceSlot,
    virtio::{
        Counter, EventLoop, GuestMemory, Poller, VirtioDevice,
        balloon::Balloon,
        block::{Disk, ExtentError, Extents},
        console::Console,
        mmio::{MMIO_LENGTH, MmioTransport, OnFailure, Surroundings},
        net::Net,
        rng::Rng,
        vsock::Vsock,
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
}

/// What requests of clients reach of the devices.
pub struct Devices {
    /// The pod's disk.
    pub extents: Arc<Extents>,
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
    /// Makes all devices and the bus that they are on. `root` becomes the first extent of the disk.
    pub fn place_all(
        &mut self,
        root: Root,
        vsock_listener: OwnedFd,
        console: &Arc<ConsoleLog>,
    ) -> Result<(Bus, Devices), DevicesError> {
        let mut bus = Bus::new();
        let extents = Arc::new(Extents::new());
        extents.attach(root.file.into(), root.sectors * SECTOR, true).map_err(DevicesError::Root)?;
        let disk = Disk::new(extents.clone());
        let (disk_read, disk_written) = (disk.read_bytes(), disk.written_bytes());
        self.place(&mut bus, DeviceSlot::Block, |_| Ok(disk))?;

        let make_vsock = |poller: &Poller| Vsock::new(vsock_listener, poller.clone());
        let vsock = self.place(&mut bus, DeviceSlot::Vsock, make_vsock)?;
        let vsock_connections = vsock.with(|vsock| vsock.open_connections());

        let record = console.clone();
        let output = Arc::new(move |bytes: &[u8]| record.append(bytes));
        self.place(&mut bus, DeviceSlot::Console, |_| Ok(Console::new(output)))?;
        self.place(&mut bus, DeviceSlot::Rng, |_| Ok(Rng::new()))?;

        let net = self.place(&mut bus, DeviceSlot::Net, |poller| Ok(Net::new(poller.clone())))?;
        let (net_received, net_sent) = net.with(|net| (net.received_bytes(), net.sent_bytes()));

        let balloon = Balloon::new();
        let reclaimed = balloon.reclaimed_bytes();
        self.place(&mut bus, DeviceSlot::Balloon, |_| Ok(balloon))?;

        let devices = Devices {
            extents,
            disk_read,
            disk_written,
            vsock,
            vsock_connections,
            net,
            net_received,
            net_sent,
            reclaimed,
        };
        Ok((bus, devices))
    }

    /// Makes one device and wires it.
    fn place<D: VirtioDevice>(
        &mut self,
        bus: &mut Bus,
        slot: DeviceSlot,
        make: impl FnOnce(&Poller) -> io::Result<D>,
    ) -> Result<Arc<MmioTransport<D>>, DevicesError> {
        let poller = self.events.poller();
        let device = make(&poller)?;
        let on_failure = self.on_failure();
        let around = Surroundings { memory: self.memory.clone(), poller: poller.clone(), on_failure };
        let transport = Arc::new(MmioTransport::new(device, around)?);
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
