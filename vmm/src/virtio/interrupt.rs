//! How a device interrupts its guest: an eventfd that KVM turns into an interrupt (irqfd), and the cause bits that the
//! driver reads and acknowledges (virtio 1.3, 4.2.2).
//!
//! The cause bits are read and acknowledged by vCPU threads on every interrupt while the device works on the event loop
//! thread, so they are atomics outside the device's lock.

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// One device's interrupt line.
pub struct Interrupt {
    event: EventFd,
    causes: AtomicU32,
    generation: AtomicU32,
}

impl Interrupt {
    /// A line with the given causes pending and configuration generation: 0 and 0 for a new device.
    pub fn new(causes: u32, generation: u32) -> std::io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_NONBLOCK)?,
            causes: AtomicU32::new(causes),
            generation: AtomicU32::new(generation),
        })
    }

    /// The eventfd to register with KVM as irqfd. The interrupt is edge-triggered.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Tells the driver that there are used buffers.
    pub fn used_buffers(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the device's configuration changed, and makes the next generation of it.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(CONFIG_CHANGE);
    }

    /// Causes that the driver has not acknowledged.
    pub fn causes(&self) -> u32 {
        self.causes.load(Ordering::Acquire)
    }

    /// Changes whenever the configuration does, so a driver can tell a torn read (virtio 1.3, 2.5.1).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Raises the line again for causes that the driver has not acknowledged: whether it was told of them is not known when a
    /// VM is built from its state, and being told twice does no harm.
    pub fn repeat(&self) {
        if self.causes() != 0 {
            self.raise(0);
        }
    }

    /// Takes the driver's acknowledgement.
    pub fn acknowledge(&self, causes: u32) {
        self.causes.fetch_and(!causes, Ordering::AcqRel);
    }

    fn raise(&self, cause: u32) {
        self.causes.fetch_or(cause, Ordering::AcqRel);
        // Fails only when 2^64 - 1 interrupts wait for delivery: then one is on its way already.
        let _ = self.event.write(1);
    }
}
