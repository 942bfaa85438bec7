//! The card on a socket that keeps frames apart as a tap does, driven as a guest would.

use super::*;
use crate::virtio::event_loop::Subscriber;
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

/// As with an acknowledgement that comes while a segment is sent.
#[test]
fn frame_that_is_sent_and_its_answer_take_one_interrupt() {
    let (mut rig, wire) = rig(u64::MAX);
    let line = rig.transport.interrupt().event().try_clone().unwrap();
    (0..40).for_each(|_| drop(rig.offer(RECEIVE, &[Part::In(2000)])));
    rig.kick(RECEIVE);
    rig.offer(TRANSMIT, &[Part::Out(&[0; 60])]);
    to_card(&wire, b"answer");
    // The kick alone, before the loop has seen that the tap can be read.
    rig.transport.handle(1 << 31 | TRANSMIT as u32, EventSet::IN);
    assert!(rig.used(TRANSMIT).is_some());
    assert_eq!(rig.used(RECEIVE), Some((0, 18)));
    rig.run();
    assert_eq!(line.read().unwrap(), 1, "interrupts");
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
