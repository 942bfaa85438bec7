//! Memory that comes and goes while the guest runs (virtio 1.3, section 5.15): a region of guest-physical addresses whose
//! blocks the guest plugs and unplugs until they make up what the host asks for.
//!
//! ```text
//! host:  Mem::request --interrupt--> driver      it follows as far as it can, and may never reach it
//! guest: PLUG, UNPLUG, UNPLUG_ALL, STATE -----> Blocks: allowed, never more than requested
//!                                                  |
//!                                                  +--> unplugged pages go back to the host
//! ```
//!
//! Made for the region that `pluggable.rs` has mapped. An unplugged block is still mapped memory: what keeps
//! a guest from using it is the limit of the pod's cgroup, see docs/decisions/0009. So plugging takes no call
//! of the host, and no address in the region can make a device fault.

mod blocks;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{
    Buffers, Chain, Counter, DeviceError, Driver, Fault, MachineDevice, MakeError, Poller, SavedStateError,
    VirtioDevice, read_config_from, sys,
};
use crate::layout::Range;
use crate::memory::GuestMemory;
pub use blocks::BlockRange;
use blocks::{BlockState, Blocks};

/// What is plugged at once, in bytes: a large page.
pub const BLOCK: u64 = 2 << 20;

/// Largest region, in bytes: more than any machine has memory. Its blocks are counted one by one now and then.
const LARGEST_REGION: u64 = 2 << 40;

/// Feature bit (5.15.3): the driver must not even read what is unplugged, so nothing is mapped there by accident.
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// Requests (5.15.6).
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// `struct virtio_mem_req`: type, padding to 8 bytes, first address, number of blocks, padding.
const REQUEST_BYTES: usize = 24;
/// `struct virtio_mem_resp`: type, padding to 8 bytes, state.
const RESPONSE_BYTES: usize = 10;

/// What a request is answered with (5.15.6). BUSY, the third, is for hosts that may be able to later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Done.
    Ack,
    /// Allowed in itself, but more than was requested.
    Nack,
    /// Not a request that a driver may make.
    Error,
    /// Done, and what the blocks are.
    State(BlockState),
}

impl Answer {
    fn to_bytes(self) -> [u8; RESPONSE_BYTES] {
        let (kind, state): (u16, u16) = match self {
            Answer::Ack | Answer::State(BlockState::Plugged) => (0, 0),
            Answer::State(BlockState::Unplugged) => (0, 1),
            Answer::State(BlockState::Mixed) => (0, 2),
            Answer::Nack => (1, 0),
            Answer::Error => (3, 0),
        };
        let mut bytes = [0; RESPONSE_BYTES];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }
}

/// The memory device.
pub struct Mem {
    region: Range,
    requested_bytes: u64,
    blocks: Blocks,
    plugged_bytes: Counter,
}

/// All that a guest can observe of its memory device. What is in plugged blocks is guest memory and not in here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    /// First guest-physical address of the region.
    pub address: u64,
    /// Its size in bytes.
    pub region_bytes: u64,
    /// Bytes the guest is asked to have plugged.
    pub requested_bytes: u64,
    /// The blocks it has plugged, in rising order.
    pub plugged: Vec<BlockRange>,
}

impl MemState {
    /// Of a guest that was never asked to grow.
    pub fn unplugged(region: Range) -> Self {
        Self { address: region.start, region_bytes: region.len, requested_bytes: 0, plugged: Vec::new() }
    }
}

impl Mem {
    /// A device for `region`, of which nothing is plugged or asked for.
    ///
    /// # Panics
    /// When the region is not made of whole blocks: `layout::pluggable` makes no such region.
    pub fn new(region: Range) -> Self {
        Self::restore(&MemState::unplugged(region)).expect("the region is made of whole blocks")
    }

    /// A device as it was saved.
    ///
    /// # Errors
    /// When no device can have been in this state.
    pub fn restore(state: &MemState) -> Result<Self, SavedStateError> {
        let refused = |what| SavedStateError { device: Self::NAME, what };
        let (address, region_bytes) = (state.address, state.region_bytes);
        let whole = [address, region_bytes, state.requested_bytes].iter().all(|n| n.is_multiple_of(BLOCK));
        if !whole || address.checked_add(region_bytes).is_none() || state.requested_bytes > region_bytes {
            return Err(refused("sizes that cannot be"));
        }
        if region_bytes > LARGEST_REGION {
            return Err(refused("too large a region"));
        }
        let count = (region_bytes / BLOCK) as u32;
        let blocks =
            Blocks::from_ranges(count, &state.plugged).ok_or(refused("blocks outside its region"))?;
        let mem = Self {
            region: Range { start: address, len: region_bytes },
            requested_bytes: state.requested_bytes,
            blocks,
            plugged_bytes: Counter::default(),
        };
        mem.count();
        Ok(mem)
    }

    /// Asks the guest to have `bytes` plugged, or the whole blocks of it, or the region if that is less. The caller tells it
    /// by [`super::Interrupt::config_changed`].
    pub fn request(&mut self, bytes: u64) {
        self.requested_bytes = bytes.min(self.region.len) / BLOCK * BLOCK;
    }

    /// Bytes that the guest has plugged.
    pub fn plugged_bytes(&self) -> Counter {
        self.plugged_bytes.clone()
    }

    fn count(&self) {
        self.plugged_bytes.set((u64::from(self.blocks.plugged()) * BLOCK) as usize);
    }

    /// Does what one chain asks for. Returns the number of bytes written to it.
    fn serve(&mut self, memory: &GuestMemory, chain: &Chain<'_>) -> Result<usize, Fault> {
        let short = |what, need, buffers: &Buffers<'_>| Fault::Short { what, need, have: buffers.len() };
        let request: [u8; REQUEST_BYTES] =
            chain.readable.first().ok_or(short("a request", REQUEST_BYTES, &chain.readable))?;
        if chain.writable.len() < RESPONSE_BYTES {
            return Err(short("a response", RESPONSE_BYTES, &chain.writable));
        }
        let answer = self.answer(memory, &request)?;
        Ok(chain.writable.copy_from(&answer.to_bytes()))
    }

    fn answer(&mut self, memory: &GuestMemory, request: &[u8; REQUEST_BYTES]) -> Result<Answer, Fault> {
        let [a, b, ..] = *request;
        let kind = u16::from_le_bytes([a, b]);
        if kind == UNPLUG_ALL {
            for range in self.blocks.ranges() {
                self.unplug(memory, range)?;
            }
            return Ok(Answer::Ack);
        }
        let Some(range) = self.range(request) else { return Ok(Answer::Error) };
        match (kind, self.blocks.state(range)) {
            (PLUG, BlockState::Unplugged) => Ok(self.plug(range)),
            (UNPLUG, BlockState::Plugged) => self.unplug(memory, range).map(|()| Answer::Ack),
            (STATE, state) => Ok(Answer::State(state)),
            _ => Ok(Answer::Error),
        }
    }

    /// The blocks that a request names, if they are some and all in the region.
    fn range(&self, request: &[u8; REQUEST_BYTES]) -> Option<BlockRange> {
        let mut address = [0; 8];
        address.copy_from_slice(&request[8..16]);
        let offset = u64::from_le_bytes(address).checked_sub(self.region.start)?;
        let count = u32::from(u16::from_le_bytes([request[16], request[17]]));
        let first = u32::try_from(offset / BLOCK).ok()?;
        let range = BlockRange { first, count };
        (offset.is_multiple_of(BLOCK) && self.blocks.contains(range)).then_some(range)
    }

    fn plug(&mut self, range: BlockRange) -> Answer {
        let after = u64::from(self.blocks.plugged()) + u64::from(range.count);
        if after * BLOCK > self.requested_bytes {
            return Answer::Nack;
        }
        self.blocks.set(range, true);
        self.count();
        Answer::Ack
    }

    fn unplug(&mut self, memory: &GuestMemory, range: BlockRange) -> Result<(), Fault> {
        let address = self.region.start + u64::from(range.first) * BLOCK;
        let length = u64::from(range.count) * BLOCK;
        let pages = memory.get_slice(GuestAddress(address), length as usize);
        let pages = pages.map_err(|_| Fault::OutsideMemory { address, length })?;
        sys::drop_pages(&pages).map_err(|error| Fault::host("madvise", &error))?;
        self.blocks.set(range, false);
        self.count();
        Ok(())
    }
}

impl VirtioDevice for Mem {
    type State = MemState;
    const NAME: &'static str = "mem";
    const ID: u32 = VIRTIO_ID_MEM;
    const QUEUE_SIZES: &'static [u16] = &[16];

    fn features(&self) -> u64 {
        1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    /// `struct virtio_mem_config` (5.15.4). All of the region is usable: what is plugged in it is bounded anyway.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        const NO_NODE: u64 = 0;
        let plugged = u64::from(self.blocks.plugged()) * BLOCK;
        let Range { start, len } = self.region;
        let fields = [BLOCK, NO_NODE, start, len, len, plugged, self.requested_bytes];
        read_config_from(fields.map(u64::to_le_bytes).as_flattened(), offset, data);
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[queue];
        while let Some(chain) = ring.pop(driver.memory)? {
            let written = self.serve(driver.memory, &chain).map_err(|fault| ring.fault(fault))?;
            ring.give_back(driver.memory, chain.head, written)?;
        }
        Ok(())
    }

    /// Nothing: what is plugged holds the guest's memory, and a new driver begins with UNPLUG_ALL where that is none of its
    /// own.
    fn reset(&mut self) {}

    fn save(&self) -> MemState {
        MemState {
            address: self.region.start,
            region_bytes: self.region.len,
            requested_bytes: self.requested_bytes,
            plugged: self.blocks.ranges(),
        }
    }
}

impl MachineDevice for Mem {
    /// The region that memory is plugged into.
    type Backend = Range;

    /// Only templates are saved, and none of them has grown: its clones say themselves how large they are to
    /// be.
    fn make(region: Range, saved: Option<&MemState>, _: &Poller) -> Result<Self, MakeError> {
        if saved.is_some_and(|saved| *saved != MemState::unplugged(region)) {
            let what = "other memory than what the guest booted with";
            return Err(SavedStateError { device: Self::NAME, what }.into());
        }
        Ok(Self::new(region))
    }
}
