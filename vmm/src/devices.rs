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
        block::{Disk, ExtentError, Extents},
        console::Console,
        mmio::{MMIO_LENGTH, MmioTransport, OnFailure, Surroundings},
        rng::Rng,
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
        root: OwnedFd,
        console: &Arc<ConsoleLog>,
    ) -> Result<(Bus, Devices), DevicesError> {
        let mut bus = Bus::new();
        let extents = Arc::new(Extents::new());
        attach_root(&extents, root)?;
        let disk = Disk::new(extents.clone());
        let devices = Devices { disk_read: disk.read_bytes(), disk_written: disk.written_bytes(), extents };
        self.place(&mut bus, DeviceSlot::Block, |_| disk)?;
        let record = console.clone();
        let output = Arc::new(move |bytes: &[u8]| record.append(bytes));
        self.place(&mut bus, DeviceSlot::Console, |_| Console::new(output))?;
        self.place(&mut bus, DeviceSlot::Rng, |_| Rng::new())?;
        Ok((bus, devices))
    }

    /// Makes one device and wires it.
    fn place<D: VirtioDevice>(
        &mut self,
        bus: &mut Bus,
        slot: DeviceSlot,
        make: impl FnOnce(&Poller) -> D,
    ) -> Result<Arc<MmioTransport<D>>, DevicesError> {
        let poller = self.events.poller();
        let device = make(&poller);
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

/// The guest root is read to the end of its last, perhaps partial sector.
fn attach_root(extents: &Extents, root: OwnedFd) -> Result<(), DevicesError> {
    const SECTOR: u64 = 512;
    let root = File::from(root);
    let length = root.metadata()?.len().next_multiple_of(SECTOR);
    extents.attach(root.into(), length, true).map_err(DevicesError::Root)?;
    Ok(())
}
