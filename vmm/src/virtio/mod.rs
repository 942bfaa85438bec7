//! Virtio devices over MMIO (virtio 1.3). README.md beside this file has the map.
//!
//! A device is a type that implements [`VirtioDevice`]; [`mmio::MmioTransport`] owns it together with its rings and
//! registers, sits on the [`crate::bus::Bus`] for the vCPU threads, and feeds it events on the [`event_loop`] thread:
//!
//! ```text
//! vCPU threads --registers, config--> MmioTransport<D> <--events-- EventLoop (one thread for all devices)
//! control thread ------with(|d| ..)-->       |
//!                                            v
//!                                D: VirtioDevice (rings and memory lent to it as `Driver` for one call)
//! ```
//!
//! A device must not trust a byte that it reads from the guest, must not block, and must not open anything: descriptors
//! are given to it. All that the guest can observe of a device is in its `State`, so that a VM can be saved and cloned.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod console;
mod counter;
mod device;
mod error;
pub mod event_loop;
mod interrupt;
mod make;
pub mod mem;
pub mod mmio;
pub mod net;
mod ring;
pub mod rng;
pub(crate) mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;

pub use buffers::Buffers;
pub use counter::Counter;
pub use device::{Driver, VirtioDevice, features, read_config_from};
pub use error::{DeviceError, Fault, SavedStateError};
pub use event_loop::{EventLoop, EventSet, Poller};
pub use interrupt::Interrupt;
pub use make::{MachineDevice, MakeError};
pub use ring::{Chain, Ring, RingState};
