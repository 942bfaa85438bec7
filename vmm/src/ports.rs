//! The bus of I/O ports, the same in every machine: the power registers and the serial port for debugging.
//! None of them has anything to save. Called by the builder and by `restore`.

use std::sync::Arc;

use crate::{
    bus::{Bus, BusError},
    console_log::ConsoleLog,
    early_console::{self, EarlyConsole},
    exit::ExitHandle,
    layout,
    power::{self, Power},
};

/// Makes the bus. The guest powers off and resets through `exit`; `console` gets what it prints while it dies
/// early.
///
/// # Errors
/// When two devices overlap, which the layout does not allow.
pub fn bus(exit: &ExitHandle, console: &Arc<ConsoleLog>) -> Result<Bus, BusError> {
    let mut ports = Bus::new();
    ports.insert(power::BASE, power::LENGTH, Arc::new(Power::new(exit.clone())))?;
    let early = Arc::new(EarlyConsole::new(console.clone()));
    ports.insert(layout::EARLY_CONSOLE_PORT.into(), early_console::LENGTH, early)?;
    Ok(ports)
}
