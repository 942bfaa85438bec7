//! The way of frames to the guest: into as many of its buffers as each takes.
//!
//! ```text
//! tap --readv--> [ buffers for a frame like the last ones | overflow ]
//!                  fits: given back, with their number in the header
//!                  does not: the rest is copied from the overflow into further buffers, or the frame waits until there are some
//! ```
//!
//! A frame's length is known only once it is read, and the longest takes 43 buffers of Linux. To have room for that each time
//! would make a small frame, such as an acknowledgement, cost 43 chains that are walked and put back. So there is room for a frame
//! like those before, and what goes beyond is caught. Called by the device; a driver that does not merge buffers gets each frame
//! into one, cut off where it is too small.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{MmapRegion, VolatileMemory};

use super::{BUFFER_COUNT, HEADER_BYTES, LONGEST_FRAME, short};
use crate::virtio::{Buffers, Chain, Counter, DeviceError, GuestMemory, Ring, sys};

/// Most chains of one frame: Linux's have 1536 bytes at least. A frame that would take more is dropped.
const MOST_CHAINS: usize = 64;

/// What the card knows of frames to come.
pub struct Receiver {
    /// Where the part of a frame lands that is longer than expected.
    overflow: MmapRegion,
    /// Length of a frame like the last ones, with its header.
    expected: usize,
    /// A frame that was read and that the guest had no room for.
    late: Option<Vec<u8>>,
    received_bytes: Counter,
}

impl Receiver {
    /// A receiver that expects short frames. Its memory costs nothing until a longer one comes.
    pub fn new() -> io::Result<Self> {
        let overflow = MmapRegion::new(LONGEST_FRAME.next_multiple_of(4096)).map_err(io::Error::other)?;
        Ok(Self { overflow, expected: HEADER_BYTES, late: None, received_bytes: Counter::default() })
    }

    /// Bytes of frames that the guest got.
    pub fn received_bytes(&self) -> Counter {
        self.received_bytes.clone()
    }

    /// Forgets the frame that waits: its driver has gone.
    pub fn reset(&mut self) {
        self.late = None;
    }

    /// Gives the guest frames of the tap as long as it has room. Returns whether the tap may have more.
    pub fn receive(
        &mut self,
        tap: BorrowedFd<'_>,
        ring: &mut Ring,
        memory: &GuestMemory,
        mergeable: bool,
    ) -> Result<bool, DeviceError> {
        let mut posted = Posted::default();
        let more = loop {
            let frame = match self.late.take() {
                Some(frame) => frame,
                None => match self.next_frame(tap, ring, memory, &mut posted, mergeable)? {
                    Next::Frame(frame) => frame,
                    Next::Delivered => continue,
                    Next::NoRoom => break true,
                    Next::Empty => break false,
                },
            };
            if posted.gather(ring, memory, frame.len())? {
                posted.room().copy_from(&frame);
                self.deliver(ring, memory, &mut posted, frame.len())?;
            } else {
                if posted.chains.len() < MOST_CHAINS {
                    self.late = Some(frame);
                } else {
                    // It is lost. Others have their turn before the next one.
                    ring.kick();
                }
                break true;
            }
        };
        posted.undo(ring);
        Ok(more)
    }

    /// Reads a frame. One that fits into what is posted is delivered, one that does not is handed out whole.
    fn next_frame<'m>(
        &mut self,
        tap: BorrowedFd<'_>,
        ring: &mut Ring,
        memory: &'m GuestMemory,
        posted: &mut Posted<'m>,
        mergeable: bool,
    ) -> Result<Next, DeviceError> {
        posted.gather(ring, memory, if mergeable { self.expected } else { 1 })?;
        if posted.chains.is_empty() {
            return Ok(Next::NoRoom);
        }
        let room = posted.room();
        let overflow = self.overflow.as_volatile_slice();
        let mut all = room.clone();
        if mergeable {
            all.push(overflow);
        }
        // The tap is empty, or it is down or gone: another event will come when it has frames.
        let Ok(length) = sys::readv(tap, &all) else { return Ok(Next::Empty) };
        if length < HEADER_BYTES {
            return Ok(Next::Delivered);
        }
        self.expected = length.max(self.expected - self.expected / 8);
        if length <= room.len() {
            self.deliver(ring, memory, posted, length)?;
            return Ok(Next::Delivered);
        }
        let mut frame = vec![0; length];
        let fitted = room.copy_to(&mut frame);
        overflow.copy_to(&mut frame[fitted..]);
        Ok(Next::Frame(frame))
    }

    fn deliver(
        &self,
        ring: &mut Ring,
        memory: &GuestMemory,
        posted: &mut Posted<'_>,
        length: usize,
    ) -> Result<(), DeviceError> {
        self.received_bytes.add(length - HEADER_BYTES);
        posted.give_back(ring, memory, length)
    }
}

/// What came of reading a frame.
enum Next {
    /// A frame that needs more room than was posted.
    Frame(Vec<u8>),
    /// One is delivered, or was none.
    Delivered,
    /// The guest has not offered anything.
    NoRoom,
    /// The tap has none.
    Empty,
}

/// Chains that were taken off the ring for frames to come, in their order.
#[derive(Default)]
struct Posted<'m> {
    chains: VecDeque<Chain<'m>>,
    bytes: usize,
}

impl<'m> Posted<'m> {
    /// Takes chains off the ring until there is room for `bytes`. Returns whether there is.
    fn gather(
        &mut self,
        ring: &mut Ring,
        memory: &'m GuestMemory,
        bytes: usize,
    ) -> Result<bool, DeviceError> {
        while self.bytes < bytes && self.chains.len() < MOST_CHAINS {
            let Some(chain) = ring.pop(memory)? else { break };
            if chain.writable.len() < HEADER_BYTES {
                return Err(short(ring, chain.writable.len()));
            }
            self.bytes += chain.writable.len();
            self.chains.push_back(chain);
        }
        Ok(self.bytes >= bytes)
    }

    /// Where a frame goes.
    fn room(&self) -> Buffers<'m> {
        let mut room = Buffers::default();
        self.chains.iter().for_each(|chain| room.append(&chain.writable));
        room
    }

    /// Gives the guest the chains that a frame of `length` bytes, header included, has filled.
    fn give_back(&mut self, ring: &mut Ring, memory: &GuestMemory, length: usize) -> Result<(), DeviceError> {
        let mut header = self.chains.front().map(|chain| chain.writable.clone()).unwrap_or_default();
        let mut rest = length;
        let mut filled = Vec::new();
        while rest > 0 {
            let chain = self.chains.pop_front().expect("a frame fills no more than its buffers");
            let room = chain.writable.len();
            self.bytes -= room;
            filled.push((chain.head, rest.min(room)));
            rest = rest.saturating_sub(room);
        }
        // All of the header lies in the first chain, as `gather` has seen.
        header.split_front(BUFFER_COUNT);
        header.copy_from(&(filled.len() as u16).to_le_bytes());
        ring.give_back_all(memory, &filled)
    }

    /// Puts back what no frame has filled.
    fn undo(self, ring: &mut Ring) {
        self.chains.iter().for_each(|_| ring.undo_pop());
    }
}
