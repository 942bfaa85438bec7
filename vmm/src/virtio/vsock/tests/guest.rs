//! A guest made of packets, and the host programs that it talks to: what the tests beside this file are told with.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};

use super::super::*;
use crate::virtio::testing::{Offer, Part, Rig};

/// What the test guest says its buffer is.
pub(super) const GUEST_BUFFER: u32 = 64 * 1024;
/// Payload room of a receive buffer.
pub(super) const ROOM: usize = 4096;

pub(super) struct Guest {
    pub(super) rig: Rig<Vsock>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
    pub(super) offered: Vec<Offer>,
    /// Fields of the credit that packets carry.
    pub(super) buffer: u32,
    pub(super) forwarded: u32,
}

impl Guest {
    pub(super) fn cold() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let rig = Rig::cold(|poller| Vsock::new(listener.into(), poller).unwrap());
        Self { rig, path, _dir: dir, offered: Vec::new(), buffer: GUEST_BUFFER, forwarded: 0 }
    }

    pub(super) fn up() -> Self {
        let mut guest = Self::cold();
        guest.start();
        guest
    }

    pub(super) fn start(&mut self) {
        self.rig.start(u64::MAX);
        self.offer_rooms(60);
    }

    pub(super) fn offer_rooms(&mut self, count: usize) {
        for _ in 0..count {
            let offer = self.rig.offer(RECEIVE, &[Part::In(HEADER_BYTES), Part::In(ROOM)]);
            self.offered.push(offer);
        }
        self.rig.kick(RECEIVE);
    }

    /// A host program that has sent its line.
    pub(super) fn dial(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.rig.run();
        stream
    }

    /// A connection from the host, established.
    pub(super) fn connected(&mut self) -> (UnixStream, Ports) {
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

    pub(super) fn header(&self, ports: Ports, op: u16) -> Header {
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

    pub(super) fn send(&mut self, ports: Ports, op: u16, flags: u32, payload: &[u8]) {
        let header = Header { flags, len: payload.len() as u32, ..self.header(ports, op) };
        self.send_raw(&header, payload);
    }

    pub(super) fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        self.rig.offer(TRANSMIT, &[Part::Out(&header.encode()), Part::Out(payload)]);
        self.rig.kick(TRANSMIT);
        while self.rig.used(TRANSMIT).is_some() {}
        if self.rig.failures.lock().unwrap().is_empty() {
            self.rig.transport.with(|vsock| vsock.muxer.check());
        }
    }

    /// Packets that came since the last call; their buffers are offered again.
    pub(super) fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
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
    pub(super) fn operations(&mut self) -> Vec<(u16, u32)> {
        self.packets().iter().map(|(header, _)| (header.op, header.flags)).collect()
    }

    pub(super) fn open_connections(&self) -> u64 {
        self.rig.transport.with(|vsock| vsock.open_connections().get())
    }

    /// Announces a port. Returns the socket on which its connections arrive.
    pub(super) fn announce(&mut self, port: u32) -> OwnedFd {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        self.rig.transport.with(|vsock| vsock.listen(port, theirs)).unwrap();
        ours
    }
}

/// What can be read now, and whether the end was met.
pub(super) fn read_all(stream: &mut UnixStream) -> (Vec<u8>, bool) {
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
pub(super) fn arrived(acceptor: &OwnedFd) -> Option<(u32, UnixStream)> {
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
