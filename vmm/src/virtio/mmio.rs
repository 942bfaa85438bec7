//! The virtio-mmio transport, version 2 (virtio 1.3, section 4.2): the registers by which a driver finds a device,
//! agrees on features, sets up its rings and starts it.
//!
//! [`MmioTransport`] owns one device and its rings under one lock. vCPU threads reach it through the bus; they only
//! touch registers and never run device code beyond the configuration space, so their seccomp filter stays small: starting
//! and resetting the device is left to the event loop thread, which is kicked for it. Kicks of queues do not come here at
//! all: KVM turns writes of [`QUEUE_NOTIFY`] into eventfds.
//!
//! ```text
//!                     reset (status := 0), from every state
//!    +-------------------------------------------------------------+
//!    v                                                             |
//! Reset -ACKNOWLEDGE-> Seen -DRIVER-> Negotiating -FEATURES_OK-> Configuring -DRIVER_OK-> Running
//!                                     features writable          rings writable           nothing writable
//!                                                                      \                    /
//!                                                              Broken (NEEDS_RESET), owner told, for good
//! ```
//!
//! A write that the present state does not allow is ignored, as the specification lets a driver expect nothing from it.
//! A ring that cannot be is an error that ends the VM.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::*;

use super::device::{Driver, VirtioDevice, features};
use super::error::{DeviceError, SavedStateError};
use super::event_loop::{EventSet, Poller, Subscriber};
use super::interrupt::Interrupt;
use super::ring::{Ring, RingState};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;

/// Bytes that a device takes on the bus.
pub const MMIO_LENGTH: u64 = 0x1000;
/// Offset of the register to bind to [`MmioTransport::kick_events`] by ioeventfd, with the queue index as 32-bit value.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// `virt` in little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "ISOP": drivers only show it.
const VENDOR: u32 = 0x504f_5349;
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// Event keys of queues; devices use keys below.
const QUEUE_KEY: u32 = 1 << 31;

/// Told once, from any thread, when a device gives up on its guest. It is to end the VM.
pub type OnFailure = Arc<dyn Fn(DeviceError) + Send + Sync>;

/// What the transport needs of the VM around it.
#[derive(Clone)]
pub struct TransportContext {
    /// Guest memory.
    pub memory: GuestMemory,
    /// The device's window on the event loop, the same that the device was given.
    pub poller: Poller,
    /// Whom to tell when the device gives up.
    pub on_failure: OnFailure,
}

/// The registers that a driver can write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// Status bits (virtio 1.3, 2.1).
    pub status: u32,
    /// Which half of the device's features the driver reads.
    pub device_features_page: u32,
    /// Which half of its own features the driver writes.
    pub driver_features_page: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// The queue that the queue registers stand for.
    pub queue: u32,
}

/// All state of a device and its transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice<S> {
    /// The transport's registers.
    pub registers: Registers,
    /// Interrupt causes that the driver has not acknowledged.
    pub interrupt_causes: u32,
    /// Generation of the configuration space.
    pub config_generation: u32,
    /// One per queue.
    pub rings: Vec<RingState>,
    /// The device's own.
    pub device: S,
}

/// Why a device cannot be built from what was saved.
#[derive(Debug, thiserror::Error)]
pub enum DeviceRestoreError {
    /// The state is not one of this device.
    #[error(transparent)]
    State(#[from] SavedStateError),
    /// An eventfd or epoll call failed.
    #[error("cannot make eventfds for a virtio device: {0}")]
    Host(#[from] io::Error),
}

/// How far the device itself has followed the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// As made.
    Idle,
    /// `activate` was called.
    Active,
    /// The driver reset it since, and `reset` was not called yet.
    ResetWanted,
}

struct Locked<D> {
    registers: Registers,
    rings: Vec<Ring>,
    progress: Progress,
    device: D,
}

/// A device on the bus.
pub struct MmioTransport<D> {
    memory: GuestMemory,
    interrupt: Interrupt,
    on_failure: OnFailure,
    locked: Mutex<Locked<D>>,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind new registers.
    pub fn new(device: D, context: TransportContext) -> io::Result<Self> {
        Self::build(device, context, Interrupt::new(0, 0)?)
    }

    /// Puts `device`, which was built from its saved state, behind saved registers and rings. Once it is wired,
    /// [`Self::resume`] makes it go on.
    pub fn restore(
        device: D,
        saved: &SavedDevice<D::State>,
        context: TransportContext,
    ) -> Result<Self, DeviceRestoreError> {
        let interrupt = Interrupt::new(saved.interrupt_causes, saved.config_generation)?;
        let transport = Self::build(device, context, interrupt)?;
        transport.restore_rings(saved)?;
        Ok(transport)
    }

    fn build(device: D, context: TransportContext, interrupt: Interrupt) -> io::Result<Self> {
        let mut rings = Vec::new();
        for (index, size) in (0..).zip(D::QUEUE_SIZES) {
            let ring = Ring::new(D::NAME, index, *size)?;
            // Each write of the eventfd is an event of its own, so it never needs to be read back.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            context.poller.add(ring.kick_event(), QUEUE_KEY | u32::from(index), events)?;
            rings.push(ring);
        }
        let locked = Locked { registers: Registers::default(), rings, progress: Progress::Idle, device };
        Ok(Self {
            memory: context.memory,
            interrupt,
            on_failure: context.on_failure,
            locked: Mutex::new(locked),
        })
    }

    fn restore_rings(&self, saved: &SavedDevice<D::State>) -> Result<(), SavedStateError> {
        let mut locked = self.lock();
        let refused = |what| SavedStateError { device: D::NAME, what };
        if saved.rings.len() != locked.rings.len() {
            return Err(refused("another number of rings"));
        }
        if saved.registers.driver_features & !(locked.device.features() | features::TRANSPORT) != 0 {
            return Err(refused("features that are not offered"));
        }
        for (ring, state) in locked.rings.iter_mut().zip(&saved.rings) {
            ring.restore(*state, &self.memory)?;
        }
        locked.registers = saved.registers.clone();
        Ok(())
    }

    /// All state, to save, once what the device has begun is finished. The vCPUs must be paused.
    pub fn save(&self) -> SavedDevice<D::State> {
        let mut locked = self.lock();
        if let Err(error) = locked.settle(&self.memory, &self.interrupt) {
            self.fail(&mut locked, error);
        }
        SavedDevice {
            registers: locked.registers.clone(),
            interrupt_causes: self.interrupt.causes(),
            config_generation: self.interrupt.generation(),
            rings: locked.rings.iter().map(Ring::save).collect(),
            device: locked.device.save(),
        }
    }

    /// The interrupt line, to register with KVM as irqfd.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Duplicates of the kick eventfds of all queues, in order, to register with KVM as ioeventfds.
    pub fn kick_events(&self) -> io::Result<Vec<vmm_sys_util::eventfd::EventFd>> {
        self.lock().rings.iter().map(|ring| ring.kick_event().try_clone()).collect()
    }

    /// After a restore: looks at what the driver had left for the device, and tells it again what it may not have heard.
    pub fn resume(&self) {
        self.lock().rings.iter().for_each(Ring::kick);
        self.interrupt.repeat();
    }

    /// Calls `act` on the device, from any thread. Waits for the event that the device is handling.
    pub fn with<T>(&self, act: impl FnOnce(&mut D) -> T) -> T {
        act(&mut self.lock().device)
    }

    fn lock(&self) -> MutexGuard<'_, Locked<D>> {
        self.locked.lock().expect("no device panics while it holds its lock")
    }

    fn fail(&self, locked: &mut Locked<D>, error: DeviceError) {
        locked.registers.status |= NEEDS_RESET;
        (self.on_failure)(error);
    }
}

impl<D: VirtioDevice> Subscriber for MmioTransport<D> {
    fn handle(&self, key: u32, events: EventSet) {
        let mut locked = self.lock();
        if locked.registers.status & NEEDS_RESET != 0 {
            return;
        }
        if let Err(error) = locked.handle(key, events, &self.memory, &self.interrupt) {
            self.fail(&mut locked, error);
        }
    }
}

impl<D: VirtioDevice> Locked<D> {
    fn handle(
        &mut self,
        key: u32,
        events: EventSet,
        memory: &GuestMemory,
        interrupt: &Interrupt,
    ) -> Result<(), DeviceError> {
        let kicked = (key & QUEUE_KEY != 0).then_some((key & !QUEUE_KEY) as usize);
        self.rings.iter_mut().for_each(Ring::start_turn);
        self.follow_reset();
        let running = self.registers.status & DRIVER_OK != 0;
        let features = self.registers.driver_features;
        let mut driver = Driver { memory, rings: &mut self.rings, features, interrupt };
        if running && self.progress == Progress::Idle {
            self.device.activate(&mut driver)?;
            self.progress = Progress::Active;
        }
        match (kicked, running) {
            (Some(queue), true) => self.device.queue_event(queue, &mut driver)?,
            (Some(_), false) => {}
            (None, _) => self.device.event(key, events, running.then_some(&mut driver))?,
        }
        if running { self.signal(memory, interrupt) } else { Ok(()) }
    }

    /// Has the device follow a reset of its driver.
    fn follow_reset(&mut self) {
        if self.progress == Progress::ResetWanted {
            self.device.reset();
            self.progress = Progress::Idle;
        }
    }

    /// Interrupts the driver, once for all rings, if it waits for what was given back to any.
    fn signal(&mut self, memory: &GuestMemory, interrupt: &Interrupt) -> Result<(), DeviceError> {
        let mut wanted = false;
        for ring in &mut self.rings {
            wanted |= ring.take_signal(memory)?;
        }
        if wanted {
            interrupt.used_buffers();
        }
        Ok(())
    }

    /// Brings the device to rest, as [`VirtioDevice::settle`] has it.
    fn settle(&mut self, memory: &GuestMemory, interrupt: &Interrupt) -> Result<(), DeviceError> {
        self.follow_reset();
        if self.progress != Progress::Active || self.registers.status & NEEDS_RESET != 0 {
            return Ok(());
        }
        let features = self.registers.driver_features;
        let mut driver = Driver { memory, rings: &mut self.rings, features, interrupt };
        self.device.settle(&mut driver)?;
        self.signal(memory, interrupt)
    }

    fn ring(&self) -> Option<&Ring> {
        self.rings.get(self.registers.queue as usize)
    }

    /// The selected ring, while it may be set up.
    fn ring_setup(&mut self) -> Option<&mut RingState> {
        let status = self.registers.status;
        let configuring = status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET) == FEATURES_OK;
        let ring = self.rings.get_mut(self.registers.queue as usize)?;
        (configuring && !ring.ready()).then(|| ring.setup())
    }

    fn write_status(&mut self, status: u32) {
        let present = self.registers.status;
        if present & NEEDS_RESET != 0 {
            return;
        }
        if status == 0 {
            return self.reset();
        }
        if status & present != present {
            return;
        }
        let added = status & !present;
        let step = match present & !FAILED {
            0 => ACKNOWLEDGE,
            s if s == ACKNOWLEDGE => DRIVER,
            s if s == ACKNOWLEDGE | DRIVER && self.features_accepted() => FEATURES_OK,
            s if s == ACKNOWLEDGE | DRIVER | FEATURES_OK => DRIVER_OK,
            _ => 0,
        };
        self.registers.status |= added & (step | FAILED);
        if added & step & DRIVER_OK != 0
            && let Some(first) = self.rings.first()
        {
            first.kick();
        }
    }

    fn features_accepted(&self) -> bool {
        let offered = self.device.features() | features::TRANSPORT;
        let accepted = self.registers.driver_features;
        accepted & !offered == 0 && accepted & features::VERSION_1 != 0
    }

    /// The rings are forgotten at once; the device follows on the event loop thread, before anything else happens to it.
    fn reset(&mut self) {
        self.registers = Registers::default();
        self.rings.iter_mut().for_each(Ring::reset);
        if self.progress == Progress::Active {
            self.progress = Progress::ResetWanted;
            if let Some(first) = self.rings.first() {
                first.kick();
            }
        }
    }
}

impl<D: VirtioDevice> MmioTransport<D> {
    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => D::ID,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.causes(),
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            // No shared memory regions: all ones (4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_DEVICE_FEATURES => {
                let locked = self.lock();
                half(locked.device.features() | features::TRANSPORT, locked.registers.device_features_page)
            }
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.lock().ring().map_or(0, |ring| ring.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.lock().ring().is_some_and(Ring::ready).into(),
            VIRTIO_MMIO_STATUS => self.lock().registers.status,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        if offset == VIRTIO_MMIO_INTERRUPT_ACK {
            return self.interrupt.acknowledge(value);
        }
        let mut guard = self.lock();
        let locked = &mut *guard;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => locked.registers.device_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => locked.registers.driver_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                let registers = &mut locked.registers;
                if registers.status == ACKNOWLEDGE | DRIVER {
                    set_half(&mut registers.driver_features, registers.driver_features_page, value);
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => locked.registers.queue = value,
            VIRTIO_MMIO_QUEUE_NUM => {
                // A size that is no 16-bit number becomes 0, which `enable` refuses.
                set_up(locked, |ring| ring.size = u16::try_from(value).unwrap_or(0));
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_up(locked, |ring| set_half(&mut ring.descriptors, 0, value)),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_up(locked, |ring| set_half(&mut ring.descriptors, 1, value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_up(locked, |ring| set_half(&mut ring.available, 0, value)),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_up(locked, |ring| set_half(&mut ring.available, 1, value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_up(locked, |ring| set_half(&mut ring.used, 0, value)),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_up(locked, |ring| set_half(&mut ring.used, 1, value)),
            VIRTIO_MMIO_QUEUE_READY if value == 1 => {
                if let Err(error) = self.enable_ring(locked) {
                    self.fail(locked, error);
                }
            }
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                // Comes here only when KVM does not have the ioeventfd.
                if let Some(ring) = locked.rings.get(value as usize) {
                    ring.kick();
                }
            }
            VIRTIO_MMIO_STATUS => locked.write_status(value),
            _ => {}
        }
    }

    fn enable_ring(&self, locked: &mut Locked<D>) -> Result<(), DeviceError> {
        if locked.ring_setup().is_none() {
            return Ok(());
        }
        let event_index = locked.registers.driver_features & features::EVENT_IDX != 0;
        locked.rings[locked.registers.queue as usize].enable(&self.memory, event_index)
    }
}

fn set_up<D: VirtioDevice>(locked: &mut Locked<D>, change: impl FnOnce(&mut RingState)) {
    if let Some(ring) = locked.ring_setup() {
        change(ring);
    }
}

/// The 32 bits of `value` that page 0 or 1 stands for.
fn half(value: u64, page: u32) -> u32 {
    match page {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, page: u32, bits: u32) {
    match page {
        0 => *value = *value & !0xffff_ffff | u64::from(bits),
        1 => *value = *value & 0xffff_ffff | u64::from(bits) << 32,
        _ => {}
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            return self.lock().device.read_config(offset - CONFIG, data);
        }
        // Registers are 32 bits wide and aligned (4.2.2.2); anything else reads as zero.
        if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            let mut locked = self.lock();
            if locked.registers.status & DRIVER != 0 {
                locked.device.write_config(offset - CONFIG, data);
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }
}
