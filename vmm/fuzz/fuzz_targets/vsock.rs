//! Any packets from the guest, with a host program that connects, writes, reads and leaves in between.

#![no_main]

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

use isopod_vmm::virtio::testing::{Part, Rig};
use isopod_vmm::virtio::vsock::{MAX_CONNECTIONS, Vsock};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HOST_PORT: u32 = 1;

#[derive(Debug, Arbitrary)]
enum Step {
    Packet { host: Port, guest: u8, op: u8, flags: u8, credit: u32, forwarded: u32, payload: u16 },
    Raw { header: [u8; 44], payload: u16, split: bool },
    Rooms { count: u8, size: u16 },
    Dial { port: u8 },
    Write { bytes: u16 },
    Read,
    Leave,
}

#[derive(Debug, Arbitrary)]
enum Port {
    Announced,
    Dialled(u8),
    Other(u32),
}

fuzz_target!(|steps: Vec<Step>| {
    static RUN: AtomicU64 = AtomicU64::new(0);
    let name = format!("isopod-fuzz-{}-{}", std::process::id(), RUN.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("a new name");
    let mut rig = Rig::running(|poller| Vsock::new(listener.into(), poller).expect("a socket"));
    let (acceptor, _arrivals) = UnixStream::pair().expect("a pair");
    rig.transport.with(|vsock| vsock.listen(HOST_PORT, acceptor.into())).expect("room for it");

    let mut streams: Vec<UnixStream> = Vec::new();
    for step in steps.into_iter().take(200) {
        step.take(&mut rig, &address, &mut streams);
        rig.kick(TRANSMIT);
        while rig.used(TRANSMIT).is_some() || rig.used(RECEIVE).is_some() {}
    }
    let open = rig.transport.with(|vsock| vsock.open_connections().get());
    assert!(open <= MAX_CONNECTIONS as u64);
    assert!(rig.failures.lock().expect("no panic").len() <= 1);
});

impl Step {
    fn take(self, rig: &mut Rig<Vsock>, address: &SocketAddr, streams: &mut Vec<UnixStream>) {
        match self {
            Step::Packet { host, guest, op, flags, credit, forwarded, payload } => {
                let fields = [
                    3u64.to_le_bytes().to_vec(),
                    2u64.to_le_bytes().to_vec(),
                    u32::from(guest).to_le_bytes().to_vec(),
                    host.number().to_le_bytes().to_vec(),
                    u32::from(payload).to_le_bytes().to_vec(),
                    1u16.to_le_bytes().to_vec(),
                    u16::from(op).to_le_bytes().to_vec(),
                    u32::from(flags).to_le_bytes().to_vec(),
                    credit.to_le_bytes().to_vec(),
                    forwarded.to_le_bytes().to_vec(),
                ];
                rig.offer(TRANSMIT, &[Part::Out(&fields.concat()), Part::Out(&vec![7; payload.into()])]);
            }
            Step::Raw { header, payload, split } => {
                let (first, second) = header.split_at(if split { 20 } else { 44 });
                let payload = vec![7; payload.into()];
                rig.offer(TRANSMIT, &[Part::Out(first), Part::Out(second), Part::Out(&payload)]);
            }
            Step::Rooms { count, size } => {
                for _ in 0..count % 16 {
                    rig.offer(RECEIVE, &[Part::In(usize::from(size))]);
                }
                rig.kick(RECEIVE);
            }
            Step::Dial { port } if streams.len() < 16 => {
                let mut stream = UnixStream::connect_addr(address).expect("it listens");
                stream.set_nonblocking(true).expect("a socket");
                let _ = stream.write_all(format!("CONNECT {port}\n").as_bytes());
                streams.push(stream);
            }
            Step::Write { bytes } => {
                if let Some(stream) = streams.last_mut() {
                    let _ = stream.write(&vec![1; bytes.into()]);
                }
            }
            Step::Read => {
                if let Some(stream) = streams.last_mut() {
                    let _ = stream.read(&mut [0; 4096]);
                }
            }
            Step::Leave => drop(streams.pop()),
            Step::Dial { .. } => {}
        }
    }
}

impl Port {
    fn number(self) -> u32 {
        match self {
            Port::Announced => HOST_PORT,
            Port::Dialled(which) => (1 << 30) + u32::from(which),
            Port::Other(port) => port,
        }
    }
}
