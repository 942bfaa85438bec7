//! The guest's source of entropy (virtio 1.3, section 5.4): the host's `getrandom`, straight into guest memory.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Chain, DeviceError, Driver, Fault, MachineDevice, MakeError, Poller, VirtioDevice, sys};

/// Most random bytes given at once; a driver that wants more asks again.
const LONGEST: usize = 4096;

/// The entropy device.
#[derive(Default)]
pub struct Rng {}

/// Nothing: every byte is fresh, so clones of a saved VM never see the same ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

impl Rng {
    /// An entropy device; also what a saved one is built from.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Fills the front of the chain. Returns the number of bytes.
fn fill(chain: &mut Chain<'_>) -> Result<usize, Fault> {
    let mut filled = 0;
    for slice in chain.writable.split_front(LONGEST).slices() {
        let count = sys::random(slice).map_err(|error| Fault::host("getrandom", &error))?;
        filled += count;
        if count < slice.len() {
            break;
        }
    }
    Ok(filled)
}

impl VirtioDevice for Rng {
    type State = RngState;
    const NAME: &'static str = "rng";
    const ID: u32 = VIRTIO_ID_RNG;
    const QUEUE_SIZES: &'static [u16] = &[16];

    fn features(&self) -> u64 {
        0
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[queue];
        while let Some(mut chain) = ring.pop(driver.memory)? {
            let filled = fill(&mut chain).map_err(|fault| ring.fault(fault))?;
            ring.give_back(driver.memory, chain.head, filled)?;
        }
        Ok(())
    }

    fn save(&self) -> RngState {
        RngState {}
    }
}

impl MachineDevice for Rng {
    type Backend = ();

    fn make((): (), _: Option<&RngState>, _: &Poller) -> Result<Self, MakeError> {
        Ok(Self::new())
    }
}
