//! One situation each, and what comes of it.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;

use super::super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::*;
use super::guest::*;
use crate::virtio::testing::{Part, Rig};

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
fn restored_device_does_not_use_a_port_again() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("vsock")).unwrap();
    let state = VsockState { next_host_port: 1 << 31 };
    let rig = Rig::running(|poller| Vsock::restore(&state, listener.into(), poller).unwrap());
    assert_eq!(rig.transport.with(|vsock| vsock.save()), state);
}
