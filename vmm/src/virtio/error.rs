//! Why a device gave up on its guest.
//!
//! Everything in guest memory is hostile. A device that meets something no correct driver does returns a
//! [`DeviceError`]; the transport reports it to the VM's owner, who ends this VM and quotes the error. Nothing is
//! repaired or guessed: a driver that is wrong once has no claim to what comes after.

use std::fmt;

/// A fault, with the device and queue it was met on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("virtio {device}{}: {fault}", OnQueue(*.queue))]
pub struct DeviceError {
    /// The device's name, such as `block`.
    pub device: &'static str,
    /// Index of the queue, where one is to blame.
    pub queue: Option<u16>,
    /// What was wrong.
    pub fault: Fault,
}

struct OnQueue(Option<u16>);

impl fmt::Display for OnQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(queue) => write!(f, " queue {queue}"),
            None => Ok(()),
        }
    }
}

/// What can be wrong with what a driver wrote, or with the host below a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Size, alignment or place of a ring (virtio 1.3, 2.7.2).
    #[error("driver set up a ring that is misaligned, too large or outside guest memory")]
    BadRing,
    /// The available index moved by more than the ring holds.
    #[error("driver made more buffers available than the ring holds")]
    AvailableIndex,
    /// More chains than the ring has entries, none of which was given back yet.
    #[error("driver offered a descriptor chain again that the device had not given back")]
    OfferedTwice,
    /// A chain's head is not an index of the descriptor table.
    #[error("descriptor {0} is outside the descriptor table")]
    Head(u16),
    /// A chain that loops, ends in the middle, or has a bad indirect table (virtio 1.3, 2.7.5).
    #[error("descriptor chain {0} is endless, broken off or has a bad indirect table")]
    BrokenChain(u16),
    /// More buffers than a chain may have.
    #[error("descriptor chain {0} has too many buffers")]
    LongChain(u16),
    /// A device-readable buffer after a device-writable one (virtio 1.3, 2.7.4.2).
    #[error("descriptor chain {0} has a readable buffer after a writable one")]
    Order(u16),
    /// A buffer that is not guest memory.
    #[error("buffer of {length:#x} bytes at {address:#x} is outside guest memory")]
    OutsideMemory {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// A chain without room for what the device must read or write.
    #[error("chain has {have} bytes where {what} needs {need}")]
    Short {
        /// What should have been there.
        what: &'static str,
        /// Its size in bytes.
        need: usize,
        /// The size found.
        have: usize,
    },
    /// A field has a value that the device type does not allow.
    #[error("{what} is {value:#x}")]
    Value {
        /// The field.
        what: &'static str,
        /// What it held.
        value: u64,
    },
    /// The host failed below the device: not the guest's doing, but the device cannot go on.
    #[error("host call {call} failed: errno {errno}")]
    Host {
        /// The system call.
        call: &'static str,
        /// Its error number.
        errno: i32,
    },
}

impl Fault {
    /// A failed host call.
    pub fn host(call: &'static str, error: &std::io::Error) -> Self {
        Self::Host { call, errno: error.raw_os_error().unwrap_or(0) }
    }

    /// Names the device, without blaming a queue.
    pub fn on(self, device: &'static str) -> DeviceError {
        DeviceError { device, queue: None, fault: self }
    }
}

/// A saved state that no device of ours can have been in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("saved state of virtio {device} holds {what}")]
pub struct SavedStateError {
    /// The device's name.
    pub device: &'static str,
    /// What is impossible about it.
    pub what: &'static str,
}
