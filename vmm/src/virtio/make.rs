//! How a machine makes a device: [`MachineDevice`], which each kind implements beside [`VirtioDevice`] to be
//! named in the list of devices (`devices/mod.rs`). Called when a machine is made, never while its guest
//! runs.

use std::error::Error;
use std::io;

use super::device::VirtioDevice;
use super::error::SavedStateError;
use super::event_loop::Poller;

/// A kind of device that a machine can have. The default of its state is that of a device which no driver has
/// found.
pub trait MachineDevice: VirtioDevice<State: Default> + Sized {
    /// What the machine is given at its start for the device to stand on: a socket, an image, a range of
    /// memory. `()` where that is nothing, or comes later by a request.
    type Backend;

    /// Makes the device, as it was `saved` where that is given. `poller` is its window on the event loop.
    ///
    /// # Errors
    /// When no device in this machine can have been in the saved state, the backend is not fit for it, or the
    /// host refuses what it needs.
    fn make(backend: Self::Backend, saved: Option<&Self::State>, poller: &Poller) -> Result<Self, MakeError>;
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Its saved state is not one that a device of this machine can go on from.
    #[error(transparent)]
    Saved(#[from] SavedStateError),
    /// The client gave something that the device cannot stand on.
    #[error("cannot {step}")]
    Backend {
        /// What was tried.
        step: &'static str,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The host refused.
    #[error("cannot {step}")]
    Host {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl From<io::Error> for MakeError {
    fn from(error: io::Error) -> Self {
        Self::host("make a device's events", error)
    }
}

impl MakeError {
    /// The host refused a step.
    pub fn host(step: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Host { step, source: source.into() }
    }
}
