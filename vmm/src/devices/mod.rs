//! The machine's devices. The list in this file is the one place that names every kind: from it come their
//! places on the bus and their interrupt lines, their entries in the guest's tables, and how they are made,
//! saved and restored.
//!
//! ```text
//! list --Devices::place--> for each line: MachineDevice::make -> MmioTransport -> event loop, KVM, bus
//!      --Devices::slots--> acpi
//!      --Devices::save, resume--> a template, its clones
//! ```
//!
//! Called by the builder and by `restore`; afterwards the machine reaches into single devices for clients'
//! requests. What a kind is and how it is made is in its folder in `virtio/`: this folder must not know. How
//! to add one is in `docs/adding.md`.

#[macro_use]
mod registry;
mod placing;

use std::{os::fd::OwnedFd, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    bus::Bus,
    console_log::ConsoleLog,
    layout::{DeviceSlot, Range},
    virtio::{self, block::Root},
};
pub use placing::{DevicesError, Machinery};
use placing::{ListEntry, Place};

// New devices go to the end: the guest finds devices by their places, and names disks and consoles in that
// order.
devices! {
    /// The pod's extent disk, `/dev/vda`.
    block: virtio::block::Disk = root,
    /// Host and guest programs talk through it.
    vsock: virtio::vsock::Vsock = vsock,
    /// The guest's console, `/dev/hvc0`.
    console: virtio::console::Console = console,
    /// Entropy.
    rng: virtio::rng::Rng,
    /// The pod's network card, `eth0`, which waits for its tap.
    net: virtio::net::Net,
    /// Gives unused memory back.
    balloon: virtio::balloon::Balloon,
    /// Memory that is plugged after boot: only a machine that may grow has it.
    mem: Option<virtio::mem::Mem> = pluggable,
}

/// What a machine is given at its start for its devices to stand on.
pub struct Backends {
    /// The guest's own root, the first extent of the disk.
    pub root: Root,
    /// A listening unix stream socket, for vsock connections from the host.
    pub vsock: OwnedFd,
    /// Where the guest's console output goes.
    pub console: Arc<ConsoleLog>,
    /// The region that memory is plugged into, where the machine may grow.
    pub pluggable: Option<Range>,
}

/// The places of the devices that are there, of all devices in their order.
fn occupied(there: &[bool]) -> Vec<DeviceSlot> {
    DeviceSlot::all().zip(there).filter(|(_, there)| **there).map(|(slot, _)| slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state of a template and the tables of a running guest name these; new devices come behind.
    #[test]
    fn devices_keep_their_places() {
        let places: Vec<_> = Devices::NAMES
            .iter()
            .zip(DeviceSlot::all())
            .map(|(name, slot)| (*name, slot.address(), slot.gsi()))
            .collect();
        let first = [
            ("block", 0xd000_0000, 5),
            ("vsock", 0xd000_1000, 6),
            ("console", 0xd000_2000, 7),
            ("rng", 0xd000_3000, 8),
            ("net", 0xd000_4000, 9),
            ("balloon", 0xd000_5000, 10),
            ("mem", 0xd000_6000, 11),
        ];
        assert_eq!(places[..first.len()], first);
    }

    #[test]
    fn device_that_is_not_there_leaves_its_place_empty() {
        let all: Vec<_> = DeviceSlot::all().collect();
        assert_eq!(occupied(&[true, true, false, true]), [all[0], all[1], all[3]]);
        assert_eq!(occupied(&vec![true; all.len()]), all);
    }

    /// A guest's memory device is saved only where the machine may grow; the others always are.
    #[test]
    fn state_has_one_entry_for_each_device() {
        let state = format!("{:?}", DevicesState::example());
        for name in Devices::NAMES {
            assert!(state.contains(&format!("{name}: ")), "{name}: {state}");
        }
        assert!(state.contains("mem: None"), "{state}");
    }
}
