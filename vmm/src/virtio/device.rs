//! What a device is to the transport: [`VirtioDevice`], and the [`Driver`] that is lent to it for one call.
//!
//! Implemented by each kind of device, called by [`super::mmio`] only. Nothing in here knows a kind.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::DeviceError;
use super::event_loop::EventSet;
use super::interrupt::Interrupt;
use super::ring::Ring;
use crate::memory::GuestMemory;

/// Features of the transport and the rings, offered for every device.
pub mod features {
    use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
    use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

    /// Virtio 1.0 and later. Drivers must accept it.
    pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    /// Chains in tables of their own.
    pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    /// Kicks and interrupts only where the other side asks for them.
    pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    /// All of them.
    pub const TRANSPORT: u64 = VERSION_1 | INDIRECT_DESC | EVENT_IDX;
}

/// What the driver in the guest has set up, lent to a device for one call on the event loop thread.
pub struct Driver<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// One ring per entry of [`VirtioDevice::QUEUE_SIZES`]. Rings the driver left out hand out no chains.
    pub rings: &'a mut [Ring],
    /// The features both sides agreed on.
    pub features: u64,
    /// For configuration changes. Used buffers are signalled by the transport when the call returns.
    pub interrupt: &'a Interrupt,
}

/// A device type. All calls come with the device's lock held; those with a [`Driver`], on the event loop
/// thread.
pub trait VirtioDevice: Send + 'static {
    /// All that a guest can observe, but for what the transport keeps (registers and rings).
    type State: Serialize + DeserializeOwned;

    /// Name in errors, such as `block`.
    const NAME: &'static str;
    /// Device type (virtio 1.3, section 5).
    const ID: u32;
    /// Largest size of each queue, powers of two.
    const QUEUE_SIZES: &'static [u16];

    /// Features of the device type; [`features::TRANSPORT`] is added to them.
    fn features(&self) -> u64;

    /// Copies the configuration space from `offset` on to `data`, which holds zeroes: see
    /// [`read_config_from`].
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// Takes a write to the configuration space. By default it is ignored, as all its fields are read-only.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready: before this no queue is looked at.
    fn activate(&mut self, _driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver kicked `queue`, or the ring kicked itself.
    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError>;

    /// `events` on a descriptor that the device registered under `key`. Without a `driver` none is ready.
    fn event(
        &mut self,
        _key: u32,
        _events: EventSet,
        _driver: Option<&mut Driver<'_>>,
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Finishes what other threads do for the device and gives it back: called before the state is taken, and
    /// allowed to wait.
    fn settle(&mut self, _driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver reset the device: it goes back to how it was made. Comes before the next `activate`.
    fn reset(&mut self) {}

    /// The state to save.
    fn save(&self) -> Self::State;
}

/// Answers a read of a configuration space that consists of `space`: bytes past its end stay as they are.
pub fn read_config_from(space: &[u8], offset: u64, data: &mut [u8]) {
    let Some(found) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else { return };
    let count = found.len().min(data.len());
    data[..count].copy_from_slice(&found[..count]);
}
