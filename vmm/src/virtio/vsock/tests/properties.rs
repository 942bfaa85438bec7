//! What holds whatever guest and host programs do.

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::*;
use super::guest::*;

#[derive(Debug, Clone)]
enum Step {
    Packet { host: u32, guest: u32, op: u16, flags: u32, payload: usize, credit: u32, forwarded: u32 },
    Dial { line: String },
    Write { which: usize, bytes: usize },
    Read { which: usize },
    Close { which: usize },
    Rooms,
}

fn step() -> impl Strategy<Value = Step> {
    let packet = (
        prop_oneof![Just(1u32), Just(2), (1u32 << 30)..(1 << 30) + 4],
        1u32..4,
        0u16..9,
        0u32..5,
        prop_oneof![Just(0usize), 1usize..2000, Just(70_000)],
        prop_oneof![Just(0u32), Just(u32::MAX), 1u32..10_000],
        any::<u32>(),
    );
    prop_oneof![
        6 => packet.prop_map(|(host, guest, op, flags, payload, credit, forwarded)| Step::Packet {
            host, guest, op, flags, payload, credit, forwarded
        }),
        1 => (1u32..4).prop_map(|port| Step::Dial { line: format!("CONNECT {port}\n") }),
        1 => "[A-Z 0-9\n]{0,40}".prop_map(|line| Step::Dial { line }),
        2 => (0usize..6, 1usize..100_000).prop_map(|(which, bytes)| Step::Write { which, bytes }),
        1 => (0usize..6).prop_map(|which| Step::Read { which }),
        1 => (0usize..6).prop_map(|which| Step::Close { which }),
        2 => Just(Step::Rooms),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever guest and host do, the tables agree, bounds hold, and the device comes to rest.
    #[test]
    fn muxer_keeps_its_invariants(steps in prop::collection::vec(step(), 1..60)) {
        let mut guest = Guest::up();
        let acceptor = guest.announce(1);
        let mut streams: Vec<UnixStream> = Vec::new();
        for step in steps {
            match step {
                Step::Packet { host, guest: port, op, flags, payload, credit, forwarded } => {
                    (guest.buffer, guest.forwarded) = (credit, forwarded);
                    guest.send(Ports { host, guest: port }, op, flags, &vec![7; payload]);
                    streams.extend(arrived(&acceptor).map(|(_, stream)| stream));
                }
                Step::Dial { line } => streams.push(guest.dial(&line)),
                Step::Write { which, bytes } if which < streams.len() => {
                    let _ = (&streams[which]).write(&vec![9; bytes]);
                }
                Step::Read { which } if which < streams.len() => {
                    read_all(&mut streams[which]);
                }
                Step::Close { which } if which < streams.len() => drop(streams.remove(which)),
                Step::Rooms => drop(guest.packets()),
                _ => {}
            }
            guest.rig.run();
            guest.rig.transport.with(|vsock| vsock.muxer.check());
            prop_assert!(guest.rig.failures.lock().unwrap().is_empty());
        }
    }

    /// Bytes arrive complete and in order, in whatever portions both sides write and read.
    #[test]
    fn streams_lose_nothing(portions in prop::collection::vec((1usize..50_000, 1usize..50_000), 1..25)) {
        let mut guest = Guest::up();
        let (mut host, ports) = guest.connected();
        let byte = |place: usize| (place / 241) as u8;
        let (mut to_guest, mut to_host) = (0, 0);
        let (mut at_guest, mut at_host) = (0, 0);
        let mut told = 0;
        for (down, up) in portions {
            let bytes: Vec<u8> = (to_guest..to_guest + down).map(byte).collect();
            to_guest += host.write(&bytes).unwrap_or(0);
            let free = BUFFER_BYTES as usize - (to_host - told);
            let bytes: Vec<u8> = (to_host..to_host + up.min(free)).map(byte).collect();
            to_host += bytes.len();
            guest.forwarded = at_guest as u32;
            guest.send(ports, op::DATA, 0, &bytes);
            for (header, payload) in guest.packets() {
                told = header.fwd_cnt as usize;
                let expected: Vec<u8> = (at_guest..at_guest + payload.len()).map(byte).collect();
                prop_assert!(payload == expected);
                at_guest += payload.len();
            }
            if up % 3 > 0 {
                let (received, _) = read_all(&mut host);
                let expected: Vec<u8> = (at_host..at_host + received.len()).map(byte).collect();
                prop_assert!(received == expected);
                at_host += received.len();
            }
        }
        for _ in 0..200 {
            guest.forwarded = at_guest as u32;
            guest.send(ports, op::CREDIT_UPDATE, 0, b"");
            at_guest += guest.packets().iter().map(|(_, payload)| payload.len()).sum::<usize>();
            at_host += read_all(&mut host).0.len();
        }
        prop_assert_eq!((at_guest, at_host), (to_guest, to_host));
    }
}
