//! The bus on which vCPU exits find their device: ranges of addresses, each with one handler.
//!
//! Filled while the VM is built, then only read: [`crate`]'s vCPU threads call [`Bus::read`] and [`Bus::write`] for each
//! MMIO exit (a second bus serves port I/O). A device sees offsets and never learns its own address. An access that
//! meets no device reads as ones, as on real hardware, is dropped when it writes, and is counted: guests probe, and a
//! probe must not end them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What sits on a bus. Called by all vCPU threads at once.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the device shows at `offset` from its base.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes what the guest wrote at `offset` from the device's base.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be placed on the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Empty, or past the end of the address space.
    #[error("bus range of {length:#x} bytes at {base:#x} is empty or wraps")]
    Malformed {
        /// First address.
        base: u64,
        /// Bytes.
        length: u64,
    },
    /// Some of its addresses have a device already.
    #[error("bus range of {length:#x} bytes at {base:#x} overlaps another device")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        length: u64,
    },
}

struct BusEntry {
    length: u64,
    device: Arc<dyn BusDevice>,
}

/// Address ranges and their devices.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, BusEntry>,
    strays: AtomicU64,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at `base..base + length`.
    pub fn insert(&mut self, base: u64, length: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end =
            base.checked_add(length).filter(|end| *end > base).ok_or(BusError::Malformed { base, length })?;
        let below = self.ranges.range(..end).next_back();
        if below.is_some_and(|(start, range)| start + range.length > base) {
            return Err(BusError::Overlap { base, length });
        }
        self.ranges.insert(base, BusEntry { length, device });
        Ok(())
    }

    /// Reads at `address`; all ones where no device answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at `address`; dropped where no device answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// Accesses that met no device, since boot.
    pub fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }

    fn find(&self, address: u64, length: usize) -> Option<(&dyn BusDevice, u64)> {
        let found = self.ranges.range(..=address).next_back().and_then(|(start, range)| {
            let offset = address - start;
            let end = offset.checked_add(length as u64)?;
            (end <= range.length).then_some((&*range.device, offset))
        });
        if found.is_none() {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Shows the offset it is read at and keeps what is written to it.
    #[derive(Default)]
    struct Echo(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn access_reaches_the_device_with_its_offset() {
        let (echo, other) = (Arc::new(Echo::default()), Arc::new(Echo::default()));
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, echo.clone()).unwrap();
        bus.insert(0x1100, 0x100, other.clone()).unwrap();

        let mut byte = [0];
        bus.read(0x1042, &mut byte);
        assert_eq!(byte, [0x42]);
        bus.write(0x11ff, &[7]);
        assert_eq!(*other.0.lock().unwrap(), [(0xff, vec![7])]);
        assert!(echo.0.lock().unwrap().is_empty());
        assert_eq!(bus.strays(), 0);
    }

    #[test]
    fn access_outside_all_ranges_reads_ones_and_is_counted() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, Arc::new(Echo::default())).unwrap();

        for address in [0xfff, 0x10fe, 0x1100, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
        bus.write(0, &[1]);
        assert_eq!(bus.strays(), 5);
    }

    #[test]
    fn overlapping_or_empty_ranges_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, Arc::new(Echo::default())).unwrap();

        for (base, length) in [(0xfff, 2), (0x10ff, 1), (0x1000, 0x100), (0, 0x2000)] {
            let refused = bus.insert(base, length, Arc::new(Echo::default()));
            assert_eq!(refused, Err(BusError::Overlap { base, length }));
        }
        for (base, length) in [(0, 0), (u64::MAX, 2)] {
            let refused = bus.insert(base, length, Arc::new(Echo::default()));
            assert_eq!(refused, Err(BusError::Malformed { base, length }));
        }
    }
}
