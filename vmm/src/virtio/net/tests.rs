//! The card, driven as a guest would, on a socket in place of a tap.

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

/// A frame's header, field by field.
#[derive(Clone, Copy, Default)]
struct Told {
    flags: u32,
    segmentation: u32,
    headers_length: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
    buffers: u16,
}

impl Told {
    /// What Linux says of a long piece of TCP over IPv4, without options.
    const TCP: Self = Self {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        segmentation: VIRTIO_NET_HDR_GSO_TCPV4,
        headers_length: 54,
        segment_bytes: 1460,
        checksum_start: 34,
        checksum_offset: 16,
        buffers: 0,
    };

    fn bytes(self) -> [u8; HEADER_BYTES] {
        let numbers = [
            self.headers_length,
            self.segment_bytes,
            self.checksum_start,
            self.checksum_offset,
            self.buffers,
        ];
        let mut bytes = [self.flags as u8, self.segmentation as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, number) in bytes[2..].chunks_exact_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

#[test]
fn frames_leave_with_their_header() {
    let (mut rig, wire) = rig(u64::MAX);
    let told = Told { checksum_start: 1, checksum_offset: 2, headers_length: 5, ..Told::TCP };
    // In one buffer with the frame's first bytes, as Linux has it, and torn apart.
    let (first, last) = (told.bytes(), Told { buffers: 9, ..told }.bytes());
    rig.ask(TRANSMIT, &[Part::Out(&[&first[..], b"fra"].concat()), Part::Out(b"me")]);
    rig.ask(TRANSMIT, &[Part::Out(&last[..3]), Part::Out(&last[3..]), Part::Out(b"frame")]);
    for _ in 0..2 {
        assert_eq!(on_wire(&wire).unwrap(), [&told.bytes(), &b"frame"[..]].concat());
    }
    assert_eq!(rig.transport.with(|net| net.sent_bytes().get()), 10);
}

/// All features but these.
fn without(bits: &[u32]) -> u64 {
    bits.iter().fold(u64::MAX, |features, bit| features & !(1 << bit))
}

#[test]
fn frame_with_an_offload_that_was_not_agreed_on_is_dropped() {
    const FRAME: usize = 100;
    let tcp = Told::TCP;
    let plain = Told::default();
    let sum = Told { segmentation: 0, segment_bytes: 0, ..tcp };
    let six = Told { segmentation: VIRTIO_NET_HDR_GSO_TCPV6, ..tcp };
    let kind = |segmentation| Told { segmentation, ..tcp };
    let flags = |flags| Told { flags, ..sum };
    let all = u64::MAX;
    let table = [
        ("nothing", all, plain, true),
        ("nothing, without any feature", 0, plain, true),
        ("a checksum", all, sum, true),
        ("a checksum that was not accepted", without(&[VIRTIO_NET_F_CSUM]), sum, false),
        ("tcp over ipv4", all, tcp, true),
        ("tcp over ipv4 that was not accepted", without(&[VIRTIO_NET_F_HOST_TSO4]), tcp, false),
        ("tcp over ipv6", all, six, true),
        ("tcp over ipv6 that was not accepted", without(&[VIRTIO_NET_F_HOST_TSO6]), six, false),
        ("a checksum that is valid", all, flags(VIRTIO_NET_HDR_F_DATA_VALID), false),
        ("segments that were joined", all, flags(VIRTIO_NET_HDR_F_RSC_INFO), false),
        ("a flag of later", all, flags(0x80 | VIRTIO_NET_HDR_F_NEEDS_CSUM), false),
        ("fragments of udp", all, kind(VIRTIO_NET_HDR_GSO_UDP), false),
        ("datagrams of udp", all, kind(VIRTIO_NET_HDR_GSO_UDP_L4), false),
        ("tcp with ecn", all, kind(VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN), false),
        ("ecn of nothing", all, kind(VIRTIO_NET_HDR_GSO_ECN), false),
        ("a kind of later", all, kind(0x7f), false),
        ("segments without a checksum", all, Told { flags: 0, ..tcp }, false),
        ("segments of nothing", all, Told { segment_bytes: 0, ..tcp }, false),
        ("segments of less than tcp has", all, Told { segment_bytes: 7, ..tcp }, false),
        ("the smallest segments", all, Told { segment_bytes: 8, ..tcp }, true),
        ("the largest segments", all, Told { segment_bytes: 0xfffe, ..tcp }, true),
        ("segments by fragments", all, Told { segment_bytes: 0xffff, ..tcp }, false),
        ("headers up to the end", all, Told { headers_length: 100, ..tcp }, true),
        ("headers beyond the end", all, Told { headers_length: 101, ..tcp }, false),
        ("headers beyond the end of a plain frame", all, Told { headers_length: 101, ..plain }, false),
        ("a checksum at the end", all, Told { checksum_start: 82, ..sum }, true),
        ("a checksum across the end", all, Told { checksum_start: 83, ..sum }, false),
        ("a checksum behind the end", all, Told { checksum_start: 0xffff, ..sum }, false),
        ("an offset behind the end", all, Told { checksum_offset: 0xffff, ..sum }, false),
    ];
    for (what, features, told, leaves) in table {
        let (mut rig, wire) = rig(features);
        rig.ask(TRANSMIT, &[Part::Out(&told.bytes()), Part::Out(&[7; FRAME])]);
        let expected = leaves.then(|| [&told.bytes()[..], &[7; FRAME]].concat());
        assert_eq!(on_wire(&wire), expected, "{what}");
    }
}

/// They mean nothing, so the host's kernel is not told them.
#[test]
fn fields_without_a_meaning_leave_as_zeroes() {
    let (mut rig, wire) = rig(u64::MAX);
    let told = Told { flags: 0, segmentation: 0, buffers: 0xffff, ..Told::TCP };
    rig.ask(TRANSMIT, &[Part::Out(&told.bytes()), Part::Out(&[7; 100])]);
    let expected = Told { headers_length: told.headers_length, ..Told::default() };
    assert_eq!(on_wire(&wire).unwrap()[..HEADER_BYTES], expected.bytes());
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
    assert!(refused.to_string().contains("descriptor is no tap"), "{refused}");
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    assert!(rig.transport.with(|net| net.attach(null.into())).is_err(), "another device is no tap either");
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

/// Buffers of a header each, more of them than one turn hands out, are all that one frame's room takes.
#[test]
fn crumbs_do_not_keep_the_card_busy() {
    let (mut rig, wire) = rig(u64::MAX);
    for _ in 0..200 {
        rig.offer(RECEIVE, &[Part::In(HEADER_BYTES)]);
    }
    to_card(&wire, b"frame");
    rig.kick(RECEIVE);
    assert_eq!(rig.used(RECEIVE), None);
    rig.offer(RECEIVE, &[Part::In(LONGEST_FRAME)]);
    rig.kick(RECEIVE);
    assert_eq!([rig.used(RECEIVE), rig.used(RECEIVE)], [Some((0, 12)), Some((1, 5))]);
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
