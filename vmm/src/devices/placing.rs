//! One device in its place: made, put behind its registers, wired to KVM and to the event loop, and put on
//! the bus. Called by what the list in `mod.rs` becomes, for each line of it, with any kind of device.

use std::{io, sync::Arc};

use crate::{
    bus::{Bus, BusError},
    exit::{ExitHandle, VmExit},
    layout::DeviceSlot,
    memory::GuestMemory,
    virtio::{
        EventLoop, MachineDevice, MakeError, Poller, SavedStateError,
        mmio::{DeviceRestoreError, MMIO_LENGTH, MmioTransport, OnFailure, SavedDevice, TransportContext},
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
    /// The device cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The system refused a descriptor.
    #[error("cannot make a device's events")]
    Events(#[from] io::Error),
    /// A device cannot be built from its state.
    #[error(transparent)]
    Restore(#[from] DeviceRestoreError),
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
    pub exit: &'a ExitHandle,
}

/// Where a device is placed.
pub struct Place<'a> {
    /// The bus of the guest's addresses.
    pub bus: &'a mut Bus,
    /// Its address and interrupt line.
    pub slot: DeviceSlot,
}

/// A line of the list: a device that every machine has or, as an `Option`, one that only some have.
pub trait ListEntry {
    /// What the device stands on, on the host.
    type Backend;
    /// The device in its place.
    type Placed;
    /// What is saved of it.
    type Saved;

    /// Makes the device, as it was `saved` where that is given, and places it.
    fn place(
        machinery: &mut Machinery<'_>,
        place: Place<'_>,
        backend: Self::Backend,
        saved: Option<&Self::Saved>,
    ) -> Result<Self::Placed, DevicesError>;

    /// Whether this machine has the device.
    fn is_there(placed: &Self::Placed) -> bool;

    /// What is to be saved of it.
    fn save(placed: &Self::Placed) -> Self::Saved;

    /// Lets it go on after a restore.
    fn resume(placed: &Self::Placed);

    /// What is saved of it before a driver has found it, for tests.
    #[cfg(any(test, feature = "testing"))]
    fn example() -> Self::Saved;
}

impl<D: MachineDevice> ListEntry for D {
    type Backend = D::Backend;
    type Placed = Arc<MmioTransport<D>>;
    type Saved = SavedDevice<D::State>;

    fn place(
        machinery: &mut Machinery<'_>,
        place: Place<'_>,
        backend: D::Backend,
        saved: Option<&Self::Saved>,
    ) -> Result<Self::Placed, DevicesError> {
        let poller = machinery.events.poller();
        let device = D::make(backend, saved.map(|saved| &saved.device), &poller)?;
        machinery.connect(place, poller, device, saved)
    }

    fn is_there(_: &Self::Placed) -> bool {
        true
    }

    fn save(placed: &Self::Placed) -> Self::Saved {
        placed.save()
    }

    fn resume(placed: &Self::Placed) {
        placed.resume();
    }

    #[cfg(any(test, feature = "testing"))]
    fn example() -> Self::Saved {
        SavedDevice {
            registers: Default::default(),
            interrupt_causes: 0,
            config_generation: 0,
            rings: Vec::new(),
            device: D::State::default(),
        }
    }
}

impl<D: MachineDevice> ListEntry for Option<D> {
    type Backend = Option<D::Backend>;
    type Placed = Option<Arc<MmioTransport<D>>>;
    type Saved = Option<SavedDevice<D::State>>;

    /// A saved machine must have the device if, and only if, this one is given a backend for it.
    fn place(
        machinery: &mut Machinery<'_>,
        place: Place<'_>,
        backend: Self::Backend,
        saved: Option<&Self::Saved>,
    ) -> Result<Self::Placed, DevicesError> {
        let refused = |what| MakeError::Saved(SavedStateError { device: D::NAME, what });
        match (backend, saved.map(Option::as_ref)) {
            (None, None | Some(None)) => Ok(None),
            (Some(backend), None) => D::place(machinery, place, backend, None).map(Some),
            (Some(backend), Some(Some(saved))) => D::place(machinery, place, backend, Some(saved)).map(Some),
            (None, Some(Some(_))) => Err(refused("a device that the machine does not have").into()),
            (Some(_), Some(None)) => Err(refused("nothing, where the machine has the device").into()),
        }
    }

    fn is_there(placed: &Self::Placed) -> bool {
        placed.is_some()
    }

    fn save(placed: &Self::Placed) -> Self::Saved {
        placed.as_ref().map(<D as ListEntry>::save)
    }

    fn resume(placed: &Self::Placed) {
        if let Some(placed) = placed {
            D::resume(placed);
        }
    }

    #[cfg(any(test, feature = "testing"))]
    fn example() -> Self::Saved {
        None
    }
}

impl Machinery<'_> {
    /// Puts a device behind its registers and joins it to the event loop, to KVM and to the bus.
    fn connect<D: MachineDevice>(
        &mut self,
        place: Place<'_>,
        poller: Poller,
        device: D,
        saved: Option<&SavedDevice<D::State>>,
    ) -> Result<Arc<MmioTransport<D>>, DevicesError> {
        let on_failure = self.on_failure();
        let context = TransportContext { memory: self.memory.clone(), poller: poller.clone(), on_failure };
        let transport = Arc::new(match saved {
            Some(saved) => MmioTransport::restore(device, saved, context)?,
            None => MmioTransport::new(device, context)?,
        });
        self.events.subscribe(&poller, transport.clone());
        self.vm.wire(place.slot, &transport.kick_events()?, transport.interrupt().event())?;
        place.bus.insert(place.slot.address(), MMIO_LENGTH, transport.clone())?;
        Ok(transport)
    }

    fn on_failure(&self) -> OnFailure {
        let exit = self.exit.clone();
        Arc::new(move |error| exit.end(VmExit::Device(error)))
    }
}
