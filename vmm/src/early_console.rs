//! A serial port of which only the transmitter works, for debugging a kernel that dies before its virtio console:
//! `earlyprintk=ttyS0` on the kernel's command line writes here. The quiet path never touches it. On the port bus.

use std::sync::Arc;

use crate::{bus::BusDevice, console_log::ConsoleLog};

/// Number of ports of a 16550.
pub const LENGTH: u64 = 8;

const TRANSMIT: u64 = 0;
const LINE_STATUS: u64 = 5;
/// The transmitter is empty, so the guest never waits.
const TRANSMITTER_EMPTY: u8 = 0x60;

/// The port.
pub struct EarlyConsole {
    log: Arc<ConsoleLog>,
}

impl EarlyConsole {
    /// A port that writes to `log`.
    pub fn new(log: Arc<ConsoleLog>) -> Self {
        Self { log }
    }
}

impl BusDevice for EarlyConsole {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == LINE_STATUS { TRANSMITTER_EMPTY } else { 0 });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == TRANSMIT {
            self.log.append(data);
        }
    }
}
