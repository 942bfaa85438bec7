//! The pod's network card (virtio 1.3, section 5.1) on a tap that is attached later: until then frames are dropped.
//!
//! Frames go between guest memory and the tap in one vectored call, each with the header that both sides know
//! (`virtio_net_hdr_v1`), so checksums and segmentation are passed along instead of done. Frames that come faster than
//! the guest offers buffers stay in the tap's queue.
//!
//! The card has no identity: its address is a placeholder and the agent sets the pod's (DESIGN decision 10). Its link is
//! up from the start, as a driver that saw it come up later would wait for up to a second before it sends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

use super::ring::MAX_BUFFERS;
use super::{
    Buffers, Chain, Counter, DeviceError, Driver, EventSet, Fault, Poller, Ring, VirtioDevice,
    read_config_from, sys,
};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Bytes of `virtio_net_hdr_v1`.
const HEADER_BYTES: usize = 12;
/// Where in it a received frame says how many chains it takes.
const BUFFER_COUNT: usize = 10;
/// Longest frame with its header: 64 KiB of payload and the Ethernet header (5.1.6.3.1).
const LONGEST_FRAME: usize = 65_562;
/// A locally administered address that stands for none.
const NO_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];

const TAP_KEY: u32 = 0;

/// Why a tap was not attached.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the descriptor as a tap: {call}: {error}; it must be open with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"
)]
pub struct TapError {
    call: &'static str,
    error: io::Error,
}

/// The network card.
pub struct Net {
    poller: Poller,
    tap: Option<OwnedFd>,
    /// The tap may have frames.
    readable: bool,
    /// What the driver accepted, while it runs.
    features: u64,
    received_bytes: Counter,
    sent_bytes: Counter,
}

/// Nothing: the tap is attached anew to a VM that is built from its state, and lost frames are what networks do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {}

impl Net {
    /// A card without a tap; also what a saved one is built from.
    pub fn new(poller: Poller) -> Self {
        Self {
            poller,
            tap: None,
            readable: false,
            features: 0,
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
        }
    }

    /// Joins the card to `tap`, in place of the one before.
    pub fn attach(&mut self, tap: OwnedFd) -> Result<(), TapError> {
        let failed = |call| move |error| TapError { call, error };
        sys::tap_header_size(tap.as_fd(), HEADER_BYTES as i32).map_err(failed("TUNSETVNETHDRSZ"))?;
        sys::tap_offload(tap.as_fd(), offload(self.features)).map_err(failed("TUNSETOFFLOAD"))?;
        self.watch(tap).map_err(failed("watching"))
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

    /// Tells the tap what the guest can take. A tap that refuses goes on sending plain frames, which every guest takes.
    fn set_offload(&self) {
        if let Some(tap) = &self.tap {
            let _ = sys::tap_offload(tap.as_fd(), offload(self.features));
        }
    }

    /// Sends the guest's frames. A frame that the tap does not take, because it is malformed or there is no room, is lost.
    fn transmit(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[TRANSMIT];
        while let Some(chain) = ring.pop(driver.memory)? {
            let length = chain.readable.len();
            if length < HEADER_BYTES {
                return Err(short(ring, length));
            }
            if let Some(tap) = &self.tap
                && length <= LONGEST_FRAME
                && sys::writev(tap.as_fd(), &chain.readable).is_ok()
            {
                self.sent_bytes.add(length - HEADER_BYTES);
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
/// offered as much.
fn offer_room<'m>(
    ring: &mut Ring,
    memory: &'m super::GuestMemory,
    posted: &mut VecDeque<Chain<'m>>,
    mergeable: bool,
) -> Result<Option<Buffers<'m>>, DeviceError> {
    let mut room = Buffers::default();
    posted.iter().for_each(|chain| room.append(&chain.writable));
    let enough = |room: &Buffers<'_>| {
        if mergeable { room.len() >= LONGEST_FRAME } else { !room.is_empty() }
    };
    while !enough(&room) {
        let Some(chain) = ring.pop(memory)? else { return Ok(None) };
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
    memory: &super::GuestMemory,
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

/// What the tap may leave to a guest with these features.
fn offload(features: u64) -> u32 {
    let wants = |bit: u32| features & 1 << bit != 0;
    if !wants(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let segmentation =
        [(VIRTIO_NET_F_GUEST_TSO4, sys::TUN_F_TSO4), (VIRTIO_NET_F_GUEST_TSO6, sys::TUN_F_TSO6)];
    segmentation.iter().filter(|(bit, _)| wants(*bit)).fold(sys::TUN_F_CSUM, |flags, (_, flag)| flags | flag)
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
        self.features = driver.features;
        self.readable = self.tap.is_some();
        self.set_offload();
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

    fn reset(&mut self) {
        self.features = 0;
        self.set_offload();
    }

    fn save(&self) -> NetState {
        NetState {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Part, Rig};
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
    use proptest::prelude::*;
    use std::os::fd::AsRawFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use vm_memory::{Bytes, GuestAddress};

    /// A card on a socket that keeps frames apart as a tap does, and the far end of it.
    fn rig(wanted: u64) -> (Rig<Net>, OwnedFd) {
        let mut rig = Rig::cold(Net::new);
        rig.start(wanted);
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (tap, wire) = pair.unwrap();
        rig.transport.with(|net| net.watch(tap)).unwrap();
        rig.run();
        (rig, wire)
    }

    fn on_wire(wire: &OwnedFd) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        let length = recv(wire.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    fn to_card(wire: &OwnedFd, frame: &[u8]) {
        let framed = [&[0xee; HEADER_BYTES], frame].concat();
        send(wire.as_raw_fd(), &framed, MsgFlags::MSG_DONTWAIT).unwrap();
    }

    #[test]
    fn frames_leave_with_their_header() {
        let (mut rig, wire) = rig(u64::MAX);
        rig.ask(TRANSMIT, &[Part::Out(&[1; HEADER_BYTES]), Part::Out(b"fra"), Part::Out(b"me")]);
        assert_eq!(on_wire(&wire).unwrap(), [&[1; HEADER_BYTES], &b"frame"[..]].concat());
        assert_eq!(rig.transport.with(|net| net.sent_bytes().get()), 5);
    }

    #[test]
    fn without_a_tap_frames_are_dropped() {
        let mut rig = Rig::running(Net::new);
        rig.ask(TRANSMIT, &[Part::Out(&[0; 60])]);
        assert_eq!(rig.transport.with(|net| net.sent_bytes().get()), 0);
    }

    #[test]
    fn something_else_than_a_tap_is_refused() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut rig = Rig::running(Net::new);
        let refused = rig.transport.with(|net| net.attach(near.into())).unwrap_err();
        assert!(refused.to_string().contains("TUNSETVNETHDRSZ"), "{refused}");
        rig.ask(TRANSMIT, &[Part::Out(&[0; 60])]);
    }

    #[test]
    fn long_frame_is_spread_over_buffers() {
        let (mut rig, wire) = rig(u64::MAX);
        let offers: Vec<_> = (0..40).map(|_| rig.offer(RECEIVE, &[Part::In(2000)])).collect();
        rig.kick(RECEIVE);
        let frame: Vec<u8> = (0..4500).map(|i| (i / 7) as u8).collect();
        to_card(&wire, &frame);
        to_card(&wire, b"short");
        rig.run();

        let used: Vec<_> = std::iter::from_fn(|| rig.used(RECEIVE)).collect();
        assert_eq!(used.iter().map(|(_, length)| *length).collect::<Vec<_>>(), [2000, 2000, 512, 17]);
        let bytes: Vec<u8> = (used.iter().zip(&offers))
            .flat_map(|((head, length), offer)| {
                assert_eq!(*head, offer.head);
                rig.bytes(offer.buffers[0].0, *length as usize)
            })
            .collect();
        assert_eq!(bytes[..HEADER_BYTES], [&[0xee; BUFFER_COUNT][..], &[3, 0]].concat());
        assert!(bytes[HEADER_BYTES..4512] == frame);
        assert_eq!(bytes[4512 + BUFFER_COUNT..4512 + HEADER_BYTES], [1, 0]);
        assert_eq!(rig.transport.with(|net| net.received_bytes().get()), 4505);
    }

    /// A driver on another processor, which looks at the used index all the time, as one that polls does.
    #[test]
    fn all_buffers_of_a_frame_appear_at_once() {
        const BUFFERS: u16 = 16;
        let (mut rig, wire) = rig(u64::MAX);
        let done = Arc::new(AtomicBool::new(false));
        let (memory, end) = (rig.memory.clone(), done.clone());
        let index = GuestAddress(rig.used_index(RECEIVE));
        let poller = std::thread::spawn(move || {
            let seen = std::iter::from_fn(|| {
                (!end.load(Ordering::Relaxed)).then(|| memory.load(index, Ordering::Acquire).unwrap())
            });
            seen.filter(|index: &u16| !index.is_multiple_of(BUFFERS)).count()
        });
        for _ in 0..2000 {
            (0..BUFFERS).for_each(|_| drop(rig.offer(RECEIVE, &[Part::In(LONGEST_FRAME.div_ceil(16))])));
            rig.kick(RECEIVE);
            to_card(&wire, &[5; LONGEST_FRAME - HEADER_BYTES]);
            rig.run();
            assert_eq!(std::iter::from_fn(|| rig.used(RECEIVE)).count(), usize::from(BUFFERS));
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(poller.join().unwrap(), 0, "looks that saw a part of a frame");
    }

    #[test]
    fn without_merging_a_frame_takes_one_buffer() {
        let (mut rig, wire) = rig(0);
        rig.offer(RECEIVE, &[Part::In(1526)]);
        rig.kick(RECEIVE);
        to_card(&wire, b"one");
        to_card(&wire, b"two");
        rig.run();
        assert_eq!(rig.used(RECEIVE), Some((0, 15)));
        assert_eq!(rig.used(RECEIVE), None);
        rig.offer(RECEIVE, &[Part::In(1526)]);
        rig.kick(RECEIVE);
        assert_eq!(rig.used(RECEIVE), Some((1, 15)));
    }

    #[test]
    fn slow_guest_leaves_frames_in_the_tap() {
        let (mut rig, wire) = rig(u64::MAX);
        to_card(&wire, b"early");
        // Not enough for the longest frame, so nothing is taken that might not fit.
        rig.offer(RECEIVE, &[Part::In(60_000)]);
        rig.kick(RECEIVE);
        assert_eq!(rig.used(RECEIVE), None);
        rig.offer(RECEIVE, &[Part::In(6_000)]);
        rig.kick(RECEIVE);
        assert_eq!(rig.used(RECEIVE), Some((0, 17)));
        assert_eq!(rig.used(RECEIVE), None);
    }

    #[test]
    fn buffer_without_room_for_a_header_ends_the_vm() {
        let (mut sender, _wire) = rig(u64::MAX);
        sender.offer(TRANSMIT, &[Part::Out(&[0; 11])]);
        sender.kick(TRANSMIT);
        assert!(matches!(sender.failure().fault, Fault::Short { have: 11, .. }));

        let (mut receiver, wire) = rig(u64::MAX);
        to_card(&wire, b"frame");
        receiver.offer(RECEIVE, &[Part::In(11)]);
        receiver.kick(RECEIVE);
        assert!(matches!(receiver.failure().fault, Fault::Short { have: 11, .. }));
    }

    #[test]
    fn driver_that_resets_gets_frames_again() {
        let (mut rig, wire) = rig(u64::MAX);
        rig.reset();
        rig.run();
        to_card(&wire, b"meanwhile");
        rig.start(0);
        rig.offer(RECEIVE, &[Part::In(100)]);
        rig.kick(RECEIVE);
        assert_eq!(rig.used(RECEIVE), Some((0, 21)));
    }

    #[test]
    fn offloads_follow_the_features() {
        let bit = |bit: u32| 1u64 << bit;
        assert_eq!(offload(0), 0);
        assert_eq!(offload(bit(VIRTIO_NET_F_GUEST_TSO4)), 0);
        assert_eq!(offload(bit(VIRTIO_NET_F_GUEST_CSUM)), sys::TUN_F_CSUM);
        assert_eq!(offload(u64::MAX), sys::TUN_F_CSUM | sys::TUN_F_TSO4 | sys::TUN_F_TSO6);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Buffers of any size, frames of any length, in any order: frames arrive whole and in order.
        #[test]
        fn frames_arrive_whole(
            steps in prop::collection::vec(prop_oneof![
                (12usize..9000).prop_map(|room| (room, None)),
                (0usize..12_000).prop_map(|length| (0, Some(length))),
            ], 1..80),
        ) {
            let (mut rig, wire) = rig(u64::MAX);
            let mut offers = VecDeque::new();
            let mut frames = VecDeque::new();
            for (room, frame) in steps {
                match frame {
                    Some(length) if frames.len() < 8 => {
                        let frame: Vec<u8> = (0..length).map(|i| (i / 11 + length) as u8).collect();
                        to_card(&wire, &frame);
                        frames.push_back(frame);
                        rig.run();
                    }
                    Some(_) => {}
                    None => {
                        offers.push_back(rig.offer(RECEIVE, &[Part::In(room)]));
                        rig.kick(RECEIVE);
                    }
                }
                while let Some((head, length)) = rig.used(RECEIVE) {
                    let offer = offers.pop_front().unwrap();
                    prop_assert_eq!(offer.head, head);
                    let mut bytes = rig.bytes(offer.buffers[0].0, length as usize);
                    for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
                        let (_, length) = rig.used(RECEIVE).unwrap();
                        let offer = offers.pop_front().unwrap();
                        bytes.extend(rig.bytes(offer.buffers[0].0, length as usize));
                    }
                    prop_assert!(bytes[HEADER_BYTES..] == frames.pop_front().unwrap());
                }
            }
            prop_assert!(rig.failures.lock().unwrap().is_empty());
        }
    }
}
