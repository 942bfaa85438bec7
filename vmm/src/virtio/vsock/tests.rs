//! The vsock device between a guest made of packets and host programs made of threads-free unix streams.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use proptest::prelude::*;

use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::virtio::testing::{Offer, Part, Rig};

/// What the test guest says its buffer is.
const GUEST_BUFFER: u32 = 64 * 1024;
/// Payload room of a receive buffer.
const ROOM: usize = 4096;

struct Guest {
    rig: Rig<Vsock>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
    offered: Vec<Offer>,
    /// Fields of the credit that packets carry.
    buffer: u32,
    forwarded: u32,
}

impl Guest {
    fn cold() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let rig = Rig::cold(|poller| Vsock::new(listener.into(), poller).unwrap());
        Self { rig, path, _dir: dir, offered: Vec::new(), buffer: GUEST_BUFFER, forwarded: 0 }
    }

    fn up() -> Self {
        let mut guest = Self::cold();
        guest.start();
        guest
    }

    fn start(&mut self) {
        self.rig.start(u64::MAX);
        self.offer_rooms(60);
    }

    fn offer_rooms(&mut self, count: usize) {
        for _ in 0..count {
            let offer = self.rig.offer(RECEIVE, &[Part::In(HEADER_BYTES), Part::In(ROOM)]);
            self.offered.push(offer);
        }
        self.rig.kick(RECEIVE);
    }

    /// A host program that has sent its line.
    fn dial(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.rig.run();
        stream
    }

    /// A connection from the host, established.
    fn connected(&mut self) -> (UnixStream, Ports) {
        let mut stream = self.dial("CONNECT 1024\n");
        let ports = match &self.packets()[..] {
            [(header, _)] if header.op == op::REQUEST => {
                Ports { host: header.src_port, guest: header.dst_port }
            }
            other => panic!("expected a request, got {other:?}"),
        };
        self.send(ports, op::RESPONSE, 0, b"");
        assert_eq!(read_all(&mut stream).0, format!("OK {}\n", ports.host).into_bytes());
        (stream, ports)
    }

    fn header(&self, ports: Ports, op: u16) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: ports.guest,
            dst_port: ports.host,
            kind: STREAM,
            op,
            buf_alloc: self.buffer,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    fn send(&mut self, ports: Ports, op: u16, flags: u32, payload: &[u8]) {
        let header = Header { flags, len: payload.len() as u32, ..self.header(ports, op) };
        self.send_raw(&header, payload);
    }

    fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        self.rig.offer(TRANSMIT, &[Part::Out(&header.encode()), Part::Out(payload)]);
        self.rig.kick(TRANSMIT);
        while self.rig.used(TRANSMIT).is_some() {}
        if self.rig.failures.lock().unwrap().is_empty() {
            self.rig.transport.with(|vsock| vsock.muxer.check());
        }
    }

    /// Packets that came since the last call; their buffers are offered again.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.rig.run();
        let mut packets = Vec::new();
        while let Some((head, written)) = self.rig.used(RECEIVE) {
            let place = self.offered.iter().position(|offer| offer.head == head).unwrap();
            let offer = self.offered.remove(place);
            let header =
                Header::decode(&self.rig.bytes(offer.buffers[0].0, HEADER_BYTES).try_into().unwrap());
            let payload = self.rig.bytes(offer.buffers[1].0, written as usize - HEADER_BYTES);
            assert_eq!(payload.len(), header.len as usize);
            packets.push((header, payload));
        }
        self.offer_rooms(packets.len());
        packets
    }

    /// The operations of the packets that came.
    fn operations(&mut self) -> Vec<(u16, u32)> {
        self.packets().iter().map(|(header, _)| (header.op, header.flags)).collect()
    }

    fn open_connections(&self) -> u64 {
        self.rig.transport.with(|vsock| vsock.open_connections().get())
    }

    /// Announces a port. Returns the socket on which its connections arrive.
    fn announce(&mut self, port: u32) -> OwnedFd {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        self.rig.transport.with(|vsock| vsock.listen(port, theirs)).unwrap();
        ours
    }
}

/// What can be read now, and whether the end was met.
fn read_all(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8192]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (bytes, true),
            Ok(count) => bytes.extend(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (bytes, false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (bytes, true),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The port and stream of a connection that arrived at an acceptor.
#[allow(unsafe_code)]
fn arrived(acceptor: &OwnedFd) -> Option<(u32, UnixStream)> {
    let mut port = [0; 4];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut pieces = [IoSliceMut::new(&mut port)];
    let message =
        recvmsg::<()>(acceptor.as_raw_fd(), &mut pieces, Some(&mut space), MsgFlags::MSG_DONTWAIT).ok()?;
    let descriptor = match message.cmsgs().unwrap().next() {
        Some(ControlMessageOwned::ScmRights(descriptors)) => descriptors[0],
        other => panic!("expected a descriptor, got {other:?}"),
    };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    stream.set_nonblocking(true).unwrap();
    Some((u32::from_le_bytes(port), stream))
}

#[test]
fn host_connects_and_bytes_flow_both_ways() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    assert_eq!(ports.guest, 1024);
    assert_eq!(guest.open_connections(), 1);

    host.write_all(b"question").unwrap();
    let packets = guest.packets();
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (op::DATA, &b"question"[..]));
    guest.send(ports, op::DATA, 0, b"answer");
    assert_eq!(read_all(&mut host).0, b"answer");
}

#[test]
fn bytes_behind_the_handshake_line_are_delivered() {
    let mut guest = Guest::up();
    let mut host = guest.dial("CONNECT 7\nearly");
    host.shutdown(Shutdown::Write).unwrap();
    let request = guest.packets()[0].0;
    guest.send(Ports { host: request.src_port, guest: 7 }, op::RESPONSE, 0, b"");
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"early");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    assert!(read_all(&mut host).0.starts_with(b"OK "));
}

#[test]
fn connect_before_the_driver_waits_for_it() {
    let mut guest = Guest::cold();
    let mut host = guest.dial("CONNECT 1024\n");
    assert_eq!(read_all(&mut host), (vec![], false));
    guest.start();
    assert_eq!(guest.operations(), [(op::REQUEST, 0)]);
}

#[test]
fn connect_waits_through_a_reset_of_the_driver_but_connections_do_not() {
    let mut guest = Guest::up();
    let (mut host, _) = guest.connected();
    guest.rig.reset();
    guest.rig.run();
    let mut other = guest.dial("CONNECT 5\n");
    assert_eq!(read_all(&mut host), (vec![], true));
    guest.offered.clear();
    guest.start();
    assert_eq!(guest.operations(), [(op::REQUEST, 0)]);
    assert_eq!(read_all(&mut other), (vec![], false));
}

#[test]
fn refused_connect_closes_the_stream() {
    let mut guest = Guest::up();
    let mut host = guest.dial("CONNECT 9\n");
    let request = guest.packets()[0].0;
    guest.send(Ports { host: request.src_port, guest: 9 }, op::RESET, 0, b"");
    assert_eq!(read_all(&mut host), (vec![], true));
    assert_eq!(guest.open_connections(), 0);
}

#[test]
fn client_that_leaves_before_the_answer_is_taken_back() {
    let mut guest = Guest::up();
    drop(guest.dial("CONNECT 9\n"));
    assert_eq!(guest.operations(), [(op::REQUEST, 0), (op::RESET, 0)]);
    assert_eq!(guest.open_connections(), 0);
}

#[test]
fn wrong_handshake_closes_the_stream() {
    let mut guest = Guest::up();
    let mut host = guest.dial("GET / HTTP/1.1\r\n");
    assert_eq!(read_all(&mut host), (vec![], true));
}

#[test]
fn guest_connects_to_an_announced_port() {
    let mut guest = Guest::up();
    let acceptor = guest.announce(1026);
    let ports = Ports { host: 1026, guest: 40_000 };
    guest.send(ports, op::REQUEST, 0, b"");
    let (port, mut host) = arrived(&acceptor).unwrap();
    assert_eq!(port, 1026);
    assert_eq!(guest.operations(), [(op::RESPONSE, 0)]);
    guest.send(ports, op::DATA, 0, b"ready");
    assert_eq!(read_all(&mut host).0, b"ready");
}

#[test]
fn unknown_port_is_reset() {
    let mut guest = Guest::up();
    let ports = Ports { host: 99, guest: 40_000 };
    for op in [op::REQUEST, op::RESPONSE, op::DATA, op::SHUTDOWN, op::CREDIT_UPDATE, 77] {
        guest.send(ports, op, 0, b"");
        assert_eq!(guest.operations(), [(op::RESET, 0)], "{op}");
    }
    guest.send(ports, op::RESET, 0, b"");
    assert_eq!(guest.operations(), []);
}

#[test]
fn packet_that_is_not_ours_is_reset() {
    let mut guest = Guest::up();
    let (_host, ports) = guest.connected();
    let good = guest.header(ports, op::DATA);
    for bad in [
        Header { src_cid: 4, ..good },
        Header { dst_cid: 1, ..good },
        Header { dst_cid: u64::MAX, ..good },
        Header { kind: 2, ..good },
    ] {
        guest.send_raw(&bad, b"");
        assert_eq!(guest.operations(), [(op::RESET, 0)]);
    }
    assert_eq!(guest.open_connections(), 1);
}

#[test]
fn dead_acceptor_is_dropped() {
    let mut guest = Guest::up();
    drop(guest.announce(1026));
    let ports = Ports { host: 1026, guest: 40_000 };
    guest.send(ports, op::REQUEST, 0, b"");
    assert_eq!(guest.operations(), [(op::RESET, 0)]);
    let acceptor = guest.announce(1026);
    guest.send(ports, op::REQUEST, 0, b"");
    assert_eq!(guest.operations(), [(op::RESPONSE, 0)]);
    assert!(arrived(&acceptor).is_some());
}

#[test]
fn host_half_close_leaves_the_other_direction_open() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.operations(), [(op::DATA, 0), (op::SHUTDOWN, SHUTDOWN_SEND)]);
    guest.send(ports, op::DATA, 0, b"still");
    assert_eq!(read_all(&mut host), (b"still".to_vec(), false));
    drop(host);
    assert_eq!(guest.operations(), [(op::SHUTDOWN, SHUTDOWN_BOTH)]);
    guest.send(ports, op::RESET, 0, b"");
    assert_eq!(guest.open_connections(), 0);
}

#[test]
fn guest_half_close_leaves_the_other_direction_open() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_SEND, b"");
    assert_eq!(read_all(&mut host), (vec![], true));
    host.write_all(b"more").unwrap();
    assert_eq!(guest.packets()[0].1, b"more");
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_RECEIVE, b"");
    assert_eq!(guest.operations(), [(op::RESET, 0)]);
    assert_eq!(guest.open_connections(), 0);
    assert_eq!(host.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn bytes_after_the_guest_said_it_is_done_reset_the_connection() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_SEND, b"");
    guest.send(ports, op::DATA, 0, b"late");
    assert_eq!(guest.operations(), [(op::RESET, 0)]);
    assert_eq!(read_all(&mut host), (vec![], true));
}

#[test]
fn what_the_guest_sent_before_it_closed_is_delivered() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    let sent: Vec<u8> = (0..BUFFER_BYTES).map(|i| (i / 251) as u8).collect();
    for chunk in sent.chunks(60_000) {
        guest.send(ports, op::DATA, 0, chunk);
    }
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_BOTH, b"");
    assert_eq!(guest.operations().last(), Some(&(op::RESET, 0)));
    // The same ports may serve again while the host still reads.
    guest.send(ports, op::DATA, 0, b"x");
    assert_eq!(guest.operations(), [(op::RESET, 0)]);

    let mut received = Vec::new();
    for _ in 0..1000 {
        let (bytes, end) = read_all(&mut host);
        received.extend(bytes);
        guest.rig.run();
        if end {
            break;
        }
    }
    assert!(received == sent);
    assert_eq!(guest.open_connections(), 0);
}

#[test]
fn guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    // The stream takes some of it, so the buffer must be filled several times over.
    let mut refused = false;
    for _ in 0..20 {
        guest.send(ports, op::DATA, 0, &[1; 64 * 1024]);
        refused |= guest.operations().contains(&(op::RESET, 0));
    }
    assert!(refused);
    assert!(!read_all(&mut host).0.is_empty());
}

#[test]
fn guest_is_told_of_room_when_the_host_reads() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    let mut sent = 0;
    let mut told = 0u32;
    let mut received = 0;
    while sent < 4 << 20 {
        let free = BUFFER_BYTES - (sent - told);
        let count = free.min(30_000);
        if count > 0 {
            guest.send(ports, op::DATA, 0, &vec![5; count as usize]);
            sent += count;
        } else {
            received += read_all(&mut host).0.len() as u32;
        }
        for (header, _) in guest.packets() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
        assert!(free > 0 || received > 0, "the guest is stuck");
    }
}

#[test]
fn guest_that_asks_is_told_its_credit() {
    let mut guest = Guest::up();
    let (_host, ports) = guest.connected();
    guest.send(ports, op::DATA, 0, b"12345");
    guest.send(ports, op::CREDIT_REQUEST, 0, b"");
    let header = guest.packets()[0].0;
    assert_eq!((header.op, header.buf_alloc, header.fwd_cnt), (op::CREDIT_UPDATE, BUFFER_BYTES, 5));
}

#[test]
fn guest_gets_no_more_than_its_credit() {
    let mut guest = Guest::up();
    let (mut host, ports) = guest.connected();
    let sent: Vec<u8> = (0..3 * GUEST_BUFFER).map(|i| (i / 97) as u8).collect();
    let mut written = 0;
    let mut received: Vec<u8> = Vec::new();
    while received.len() < sent.len() {
        if written < sent.len() {
            written += host.write(&sent[written..]).unwrap_or(0);
        }
        let before = received.len();
        loop {
            let packets = guest.packets();
            if packets.is_empty() {
                break;
            }
            packets.iter().for_each(|(_, payload)| received.extend(payload));
        }
        assert!(received.len() - before <= GUEST_BUFFER as usize);
        guest.forwarded = received.len() as u32;
        guest.send(ports, op::CREDIT_UPDATE, 0, b"");
    }
    assert!(received == sent);
}

#[test]
fn reader_that_leaves_stops_the_guest() {
    let mut guest = Guest::up();
    let (host, ports) = guest.connected();
    host.shutdown(Shutdown::Read).unwrap();
    guest.send(ports, op::DATA, 0, b"nobody reads this");
    assert_eq!(guest.operations(), [(op::SHUTDOWN, SHUTDOWN_RECEIVE)]);
}

#[test]
fn closed_stream_that_the_guest_shuts_down_comes_to_rest() {
    let mut guest = Guest::up();
    let (host, ports) = guest.connected();
    drop(host);
    guest.rig.run();
    guest.send(ports, op::SHUTDOWN, SHUTDOWN_SEND, b"");
    guest.rig.run();
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::cold();
    guest.rig.start(u64::MAX);
    guest.offer_rooms(20);
    let (mut first, _) = guest.connected();
    let (mut second, _) = guest.connected();
    guest.rig.run();
    first.write_all(&[1; 100_000]).unwrap();
    second.write_all(&[2; 100_000]).unwrap();
    let mut seen: Vec<u8> = guest.packets().iter().map(|(_, payload)| payload[0]).collect();
    seen.dedup();
    assert_eq!(seen, [1, 2]);
}

#[test]
fn number_of_connections_is_bounded() {
    let mut guest = Guest::up();
    let acceptor = guest.announce(1);
    let mut streams = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.send(Ports { host: 1, guest: port }, op::REQUEST, 0, b"");
        assert_eq!(guest.operations(), [(op::RESPONSE, 0)]);
        streams.push(arrived(&acceptor).unwrap().1);
    }
    guest.send(Ports { host: 1, guest: 9999 }, op::REQUEST, 0, b"");
    assert_eq!(guest.operations(), [(op::RESET, 0)]);

    // A host program waits until there is room again.
    let _host = guest.dial("CONNECT 1024\n");
    assert_eq!(guest.operations(), []);
    guest.send(Ports { host: 1, guest: 0 }, op::RESET, 0, b"");
    assert_eq!(guest.operations(), [(op::REQUEST, 0)]);
}

#[test]
fn resets_that_cannot_be_sent_are_bounded() {
    let mut guest = Guest::cold();
    guest.rig.start(u64::MAX);
    for port in 0..3000 {
        guest.send(Ports { host: 99, guest: port }, op::REQUEST, 0, b"");
    }
    guest.offer_rooms(60);
    assert!(guest.operations().iter().all(|packet| *packet == (op::RESET, 0)));
}

#[test]
fn malformed_packets_end_the_vm() {
    let header = Header { len: 5, ..Header::default() }.encode();
    for parts in [vec![Part::Out(&header[..43])], vec![Part::Out(&header), Part::Out(b"1234")]] {
        let mut guest = Guest::up();
        guest.rig.offer(TRANSMIT, &parts);
        guest.rig.kick(TRANSMIT);
        assert!(matches!(guest.rig.failure().fault, Fault::Short { .. }));
    }
    let mut guest = Guest::cold();
    guest.rig.start(u64::MAX);
    guest.rig.offer(RECEIVE, &[Part::In(HEADER_BYTES)]);
    drop(guest.dial("CONNECT 1\n"));
    assert!(matches!(guest.rig.failure().fault, Fault::Short { .. }));
}

#[test]
fn restored_guest_is_told_that_its_connections_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("vsock")).unwrap();
    let state = VsockState { next_host_port: 1 << 31 };
    let mut rig = Rig::running(|poller| Vsock::restore(&state, listener.into(), poller).unwrap());
    assert_eq!(rig.ask(EVENTS, &[Part::In(4)]), TRANSPORT_RESET.to_le_bytes());
    rig.offer(EVENTS, &[Part::In(4)]);
    rig.kick(EVENTS);
    assert_eq!(rig.used(EVENTS), None);
    assert_eq!(rig.transport.with(|vsock| vsock.save()), state);
}

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
