//! The pod's network card (virtio 1.3, section 5.1) on a tap that is attached later: until then frames are dropped.
//!
//! Frames go between guest memory and the tap in one vectored call, each with the header that both sides know
//! (`virtio_net_hdr_v1`), so checksums and segmentation are passed along instead of done. What a guest writes
//! into that header is checked in `net/header.rs`. Frames that come faster than the guest offers buffers stay
//! in the tap's queue.
//!
//! What the tap may leave to the guest was set by who opened it, once: each such setting takes the lock of
//! all the node's networks (`rtnl_lock`), which is not to be within a guest's reach. A driver that accepts
//! less than this card offers may be given frames that it cannot read, to its own harm.
//!
//! The card has no identity: its address is a placeholder and the agent sets the pod's (DESIGN decision 10). Its link is
//! up from the start, as a driver that saw it come up later would wait for up to a second before it sends.

mod header;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{dev_t, makedev};
use nix::sys::stat::{SFlag, fstat};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

use super::ring::MAX_BUFFERS;
use super::{
    Buffers, Chain, Counter, DeviceError, Driver, EventSet, Fault, MachineDevice, MakeError, Poller, Ring,
    VirtioDevice, read_config_from, sys,
};
use crate::memory::GuestMemory;
use header::HEADER_BYTES;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Where in its header a received frame says how many chains it takes.
const BUFFER_COUNT: usize = 10;
/// Longest frame with its header: 64 KiB of payload and the Ethernet header (5.1.6.3.1).
const LONGEST_FRAME: usize = 65_562;
/// A locally administered address that stands for none.
const NO_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];

const TAP_KEY: u32 = 0;

/// The device of all taps, `/dev/net/tun` (Documentation/admin-guide/devices.txt).
const TUN: dev_t = makedev(10, 200);

/// Why a tap was not attached.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is something else.
    #[error(
        "descriptor is no tap: open /dev/net/tun with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, and pass that on"
    )]
    NoTap,
    /// It cannot be watched.
    #[error("tap cannot be watched: {0}")]
    Io(#[from] io::Error),
}

/// The network card.
pub struct Net {
    poller: Poller,
    tap: Option<OwnedFd>,
    /// The tap may have frames.
    readable: bool,
    /// What the driver accepted, while it runs.
    received_bytes: Counter,
    sent_bytes: Counter,
}

/// Nothing: the tap is attached anew to a VM that is built from its state, and lost frames are what networks do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {}

impl Net {
    /// A card without a tap; also what a saved one is built from.
    pub fn new(poller: Poller) -> Self {
        Self {
            poller,
            tap: None,
            readable: false,
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
        }
    }

    /// Joins the card to `tap`, in place of the one before.
    ///
    /// # Errors
    /// The card keeps the one before then.
    pub fn attach(&mut self, tap: OwnedFd) -> Result<(), TapError> {
        let file = fstat(&tap).map_err(io::Error::from)?;
        let is_device = SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
        if !is_device || file.st_rdev != TUN {
            return Err(TapError::NoTap);
        }
        Ok(self.watch(tap)?)
    }

    /// As [`Self::attach`], of anything that keeps frames apart and has a header before each.
    pub(crate) fn watch(&mut self, tap: OwnedFd) -> io::Result<()> {
        let flags = OFlag::from_bits_truncate(fcntl(&tap, FcntlArg::F_GETFL)?);
        fcntl(&tap, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        if let Some(old) = self.tap.take() {
            self.poller.remove(&old)?;
        }
        self.poller.add(&tap, TAP_KEY, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        self.tap = Some(tap);
        Ok(())
    }

    /// Bytes of frames that the guest got.
    pub fn received_bytes(&self) -> Counter {
        self.received_bytes.clone()
    }

    /// Bytes of frames that the guest sent and the tap took.
    pub fn sent_bytes(&self) -> Counter {
        self.sent_bytes.clone()
    }

    /// Sends the guest's frames. A frame that asks for what was not agreed on is lost, and so is one that the
    /// tap does not take, because it is malformed or there is no room.
    fn transmit(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[TRANSMIT];
        while let Some(chain) = ring.pop(driver.memory)? {
            let mut frame = chain.readable;
            let told = frame.first().ok_or_else(|| short(ring, frame.len()))?;
            frame.skip_front(HEADER_BYTES);
            if let Some(tap) = &self.tap
                && frame.len() <= LONGEST_FRAME - HEADER_BYTES
                && let Some(header) = header::for_tap(told, frame.len(), driver.features)
                && sys::write_frame(tap.as_fd(), &header, &frame).is_ok()
            {
                self.sent_bytes.add(frame.len());
            }
            ring.give_back(driver.memory, chain.head, 0)?;
        }
        Ok(())
    }

    /// Gives the guest the frames that wait in the tap, as long as it has room for the longest there can be.
    fn receive(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let Some(tap) = self.tap.as_ref().filter(|_| self.readable) else { return Ok(()) };
        let ring = &mut driver.rings[RECEIVE];
        let mergeable = driver.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let mut posted = VecDeque::new();
        while let Some(room) = offer_room(ring, driver.memory, &mut posted, mergeable)? {
            // The tap is down or gone: another event will come when it is back.
            let Ok(length) = sys::readv(tap.as_fd(), &room) else {
                self.readable = false;
                break;
            };
            if length < HEADER_BYTES {
                continue;
            }
            self.received_bytes.add(length - HEADER_BYTES);
            deliver(ring, driver.memory, &mut posted, &room, length)?;
        }
        posted.iter().for_each(|_| ring.undo_pop());
        Ok(())
    }
}

/// Takes chains off the ring until `posted` has room for any frame. Returns that room, or `None` if the guest has not
/// offered as much, or if this turn is over. The room of one frame may take more chains than a turn has,
/// where each is small: all that the guest has offered at most.
fn offer_room<'m>(
    ring: &mut Ring,
    memory: &'m GuestMemory,
    posted: &mut VecDeque<Chain<'m>>,
    mergeable: bool,
) -> Result<Option<Buffers<'m>>, DeviceError> {
    if ring.turn_is_over() {
        return Ok(None);
    }
    let mut room = Buffers::default();
    posted.iter().for_each(|chain| room.append(&chain.writable));
    let enough = |room: &Buffers<'_>| {
        if mergeable { room.len() >= LONGEST_FRAME } else { !room.is_empty() }
    };
    while !enough(&room) {
        let Some(chain) = ring.pop_beyond_budget(memory)? else { return Ok(None) };
        if chain.writable.len() < HEADER_BYTES {
            return Err(short(ring, chain.writable.len()));
        }
        if room.slices().len() + chain.writable.slices().len() > MAX_BUFFERS {
            // A driver that offers a thousand crumbs gets what fits into them.
            ring.undo_pop();
            break;
        }
        room.append(&chain.writable);
        posted.push_back(chain);
    }
    Ok(Some(room))
}

/// Gives the guest the chains at the front of `posted` that a frame of `length` bytes, header included, has filled.
fn deliver(
    ring: &mut Ring,
    memory: &GuestMemory,
    posted: &mut VecDeque<Chain<'_>>,
    room: &Buffers<'_>,
    length: usize,
) -> Result<(), DeviceError> {
    let mut rest = length;
    let mut filled = Vec::new();
    while rest > 0 {
        let chain = posted.pop_front().expect("a read fills no more than its buffers");
        let count = rest.min(chain.writable.len());
        filled.push((chain.head, count));
        rest -= count;
    }
    let mut header = room.clone().split_front(HEADER_BYTES);
    header.split_front(BUFFER_COUNT);
    header.copy_from(&(filled.len() as u16).to_le_bytes());
    ring.give_back_all(memory, &filled)
}

fn short(ring: &Ring, have: usize) -> DeviceError {
    ring.fault(Fault::Short { what: "the header of a frame", need: HEADER_BYTES, have })
}

impl VirtioDevice for Net {
    type State = NetState;
    const NAME: &'static str = "net";
    const ID: u32 = VIRTIO_ID_NET;
    const QUEUE_SIZES: &'static [u16] = &[256, 256];

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        space[..6].copy_from_slice(&NO_ADDRESS);
        space[6..].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        read_config_from(&space, offset, data);
    }

    fn activate(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        self.readable = self.tap.is_some();
        self.receive(driver)
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        match queue {
            RECEIVE => self.receive(driver),
            _ => self.transmit(driver),
        }
    }

    fn event(
        &mut self,
        _key: u32,
        _events: EventSet,
        driver: Option<&mut Driver<'_>>,
    ) -> Result<(), DeviceError> {
        self.readable = true;
        driver.map_or(Ok(()), |driver| self.receive(driver))
    }

    fn reset(&mut self) {}

    fn save(&self) -> NetState {
        NetState {}
    }
}

impl MachineDevice for Net {
    /// Nothing yet: the tap comes by a request.
    type Backend = ();

    fn make((): (), _: Option<&NetState>, poller: &Poller) -> Result<Self, MakeError> {
        Ok(Self::new(poller.clone()))
    }
}
