//! The registers by which the guest ends: ACPI sleep and reset (see [`crate::acpi`]). On the port bus.

use crate::{
    acpi,
    bus::BusDevice,
    exit::{ExitHandle, VmExit},
    layout::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT},
};

/// First port.
pub const BASE: u64 = SLEEP_CONTROL_PORT as u64;
/// Number of ports: sleep control, sleep status, reset.
pub const LENGTH: u64 = 3;

const RESET: u64 = RESET_PORT as u64 - BASE;

/// The power registers.
pub struct Power {
    exit: ExitHandle,
}

impl Power {
    /// Registers that end the VM through `exit`.
    pub fn new(exit: ExitHandle) -> Self {
        Self { exit }
    }
}

impl BusDevice for Power {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [value]) if acpi::is_power_off(*value) => self.exit.end(VmExit::PowerOff),
            (RESET, [RESET_VALUE]) => self.exit.end(VmExit::Reset),
            // Also writes to the sleep status, which is always clear.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::EventLoop;

    fn ended_by(offset: u64, data: &[u8]) -> Option<VmExit> {
        let exit = ExitHandle::new(EventLoop::new().unwrap().stopper());
        Power::new(exit.clone()).write(offset, data);
        exit.reason()
    }

    #[test]
    fn guest_ends_by_the_value_of_each_register_only() {
        assert_eq!(ended_by(0, &[0x34]), Some(VmExit::PowerOff));
        assert_eq!(ended_by(RESET, &[RESET_VALUE]), Some(VmExit::Reset));
        assert_eq!(ended_by(0, &[0x20]), None);
        assert_eq!(ended_by(RESET, &[0]), None);
        assert_eq!(ended_by(1, &[0x80]), None, "sleep status");
        assert_eq!(ended_by(0, &[0x34, 0x34]), None);
    }
}
