//! The socket between host and guest (virtio 1.3, section 5.10), all in user space.
//!
//! | file | idea |
//! |---|---|
//! | `mod.rs` | the device: three rings on one side, the muxer on the other |
//! | `muxer.rs` | which connection a packet or event is for; opening, exit, bounds |
//! | `connection.rs` | one connection: states, credit, bytes both ways |
//! | `client.rs` | a host program in its `CONNECT` handshake |
//! | `backlog.rs` | bytes that a host program has not taken yet |
//! | `packet.rs` | the header |
//!
//! A packet from the guest: `queue_event` -> `receive` -> [`Muxer::receive`] -> [`Connection::receive`] -> stream.
//! Bytes from the host: `event` -> [`Muxer::event`] -> line of ready connections -> `send` -> [`Connection::read`] -> ring.

mod backlog;
mod client;
mod connection;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use isopod_protocols::vsock::{GUEST_CID, HOST_CID};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::timerfd::TimerFd;

pub use connection::BUFFER_BYTES;
pub use muxer::{ListenError, MAX_CONNECTIONS};

use super::ring::MAX_BUFFERS;
use super::{
    Buffers, Counter, DeviceError, Driver, EventSet, Fault, MachineDevice, MakeError, Poller, Ring,
    VirtioDevice, read_config_from,
};
use crate::memory::GuestMemory;
use connection::{Connection, Ports};
use muxer::Muxer;
use packet::{HEADER_BYTES, Header, STREAM, op};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENTS: usize = 2;

/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1;

/// Event key of the timer for deadlines.
const TIMER_KEY: u32 = 1;
const TICK: Duration = Duration::from_secs(1);
/// Buffers of the guest that one read from a stream may fill. Linux offers them in pages.
const GATHER: usize = 16;

/// The vsock device.
pub struct Vsock {
    muxer: Muxer,
    timer: TimerFd,
    ticking: bool,
}

/// All that a guest can observe of its vsock device while it has no connection: with one, a VM is not saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Port of the next connection from the host: not used twice in a guest's life.
    pub next_host_port: u32,
}

/// Whether a connection's turn ended because the guest has no more room.
#[derive(PartialEq, Eq)]
enum Turn {
    Done,
    NoRoom,
}

/// A buffer of the guest for one packet.
struct Slot<'m> {
    head: u16,
    header: Buffers<'m>,
    payload: Buffers<'m>,
}

impl Vsock {
    /// A device for host programs that connect to `listener`, a unix stream socket.
    pub fn new(listener: OwnedFd, poller: Poller) -> io::Result<Self> {
        Self::restore(&VsockState { next_host_port: 0 }, listener, poller)
    }

    /// A device as it was saved.
    pub fn restore(saved: &VsockState, listener: OwnedFd, poller: Poller) -> io::Result<Self> {
        let timer = TimerFd::new()?;
        poller.add(&timer, TIMER_KEY, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        let muxer = Muxer::new(listener, poller, saved.next_host_port)?;
        Ok(Self { muxer, timer, ticking: false })
    }

    /// Passes connections of the guest to host port `port` on to `acceptor`, a unix `SOCK_SEQPACKET` socket: each as the
    /// port, 4 bytes in little endian, with a stream's descriptor beside it. Replaces the acceptor before.
    pub fn listen(&mut self, port: u32, acceptor: OwnedFd) -> Result<(), ListenError> {
        self.muxer.listen(port, acceptor)
    }

    /// Number of connections that are open now.
    pub fn open_connections(&self) -> Counter {
        self.muxer.open_connections()
    }

    /// Takes packets from the guest.
    fn receive(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[TRANSMIT];
        let now = Instant::now();
        while let Some(chain) = ring.pop(driver.memory)? {
            let mut payload = chain.readable;
            let header = payload.split_front(HEADER_BYTES);
            let short = |what, need, have| ring.fault(Fault::Short { what, need, have });
            let header = header
                .first()
                .map(|bytes| Header::decode(&bytes))
                .ok_or_else(|| short("the header of a packet", HEADER_BYTES, header.len()))?;
            let length = header.len as usize;
            if length > payload.len() {
                return Err(short("the payload of a packet", length, payload.len()));
            }
            let payload = payload.split_front(length);
            let ours = header.src_cid == u64::from(GUEST_CID)
                && header.dst_cid == u64::from(HOST_CID)
                && header.kind == STREAM;
            if ours {
                self.muxer.receive(&header, &payload, now);
            } else {
                self.muxer.refuse(&header);
            }
            ring.give_back(driver.memory, chain.head, 0)?;
        }
        Ok(())
    }

    /// Gives the guest what there is for it, as long as it has room: first the resets, then each connection in turn.
    fn send(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[RECEIVE];
        let now = Instant::now();
        while let Some(ports) = self.muxer.take_reset() {
            let Some(slot) = pop_slot(ring, driver.memory)? else {
                self.muxer.put_back_reset(ports);
                return Ok(());
            };
            put_packet(ring, driver.memory, &slot, reset_header(ports))?;
        }
        while let Some((key, connection)) = self.muxer.next_ready() {
            let turn = serve(connection, ring, driver.memory, now)?;
            self.muxer.settle(key, now);
            if turn == Turn::NoRoom {
                break;
            }
        }
        Ok(())
    }

    /// Runs the timer while something has a deadline: an idle VM is not woken.
    fn watch_clock(&mut self) {
        if !self.ticking && self.muxer.waits() {
            // Fails only for times that cannot be.
            self.ticking = self.timer.reset(TICK, None).is_ok();
        }
    }
}

/// One turn of a connection: its packets without payload, then what one read brings.
fn serve(
    connection: &mut Connection,
    ring: &mut Ring,
    memory: &GuestMemory,
    now: Instant,
) -> Result<Turn, DeviceError> {
    loop {
        if let Some((op, flags)) = connection.due() {
            let Some(slot) = pop_slot(ring, memory)? else { return Ok(Turn::NoRoom) };
            put_packet(ring, memory, &slot, connection.header(op, flags, 0, now))?;
            continue;
        }
        let credit = connection.readable();
        if credit == 0 {
            return Ok(Turn::Done);
        }
        let (slots, room) = gather(ring, memory, credit)?;
        if slots.is_empty() {
            return Ok(Turn::NoRoom);
        }
        let count = connection.read(&room);
        let mut rest = count;
        for slot in slots {
            let length = rest.min(slot.payload.len());
            if length == 0 {
                ring.undo_pop();
                continue;
            }
            rest -= length;
            put_packet(ring, memory, &slot, connection.header(op::DATA, 0, length, now))?;
        }
        if count > 0 {
            return Ok(Turn::Done);
        }
    }
}

/// Buffers of the guest for at most `credit` bytes, and their payload parts as one.
fn gather<'m>(
    ring: &mut Ring,
    memory: &'m GuestMemory,
    credit: usize,
) -> Result<(Vec<Slot<'m>>, Buffers<'m>), DeviceError> {
    let (mut slots, mut room) = (Vec::new(), Buffers::default());
    while room.len() < credit && slots.len() < GATHER {
        let Some(mut slot) = pop_slot(ring, memory)? else { break };
        if room.slices().len() + slot.payload.slices().len() > MAX_BUFFERS {
            ring.undo_pop();
            break;
        }
        slot.payload = slot.payload.split_front(credit - room.len());
        room.append(&slot.payload);
        slots.push(slot);
    }
    Ok((slots, room))
}

fn pop_slot<'m>(ring: &mut Ring, memory: &'m GuestMemory) -> Result<Option<Slot<'m>>, DeviceError> {
    let Some(chain) = ring.pop(memory)? else { return Ok(None) };
    let mut payload = chain.writable;
    let header = payload.split_front(HEADER_BYTES);
    if payload.is_empty() {
        let (need, have) = (HEADER_BYTES + 1, header.len());
        return Err(ring.fault(Fault::Short { what: "a receive buffer", need, have }));
    }
    Ok(Some(Slot { head: chain.head, header, payload }))
}

/// Gives a buffer back as the packet that `header` describes; its payload is in place.
fn put_packet(
    ring: &mut Ring,
    memory: &GuestMemory,
    slot: &Slot<'_>,
    header: Header,
) -> Result<(), DeviceError> {
    let header = Header { src_cid: HOST_CID.into(), dst_cid: GUEST_CID.into(), kind: STREAM, ..header };
    slot.header.copy_from(&header.encode());
    ring.give_back(memory, slot.head, HEADER_BYTES + header.len as usize)
}

fn reset_header(ports: Ports) -> Header {
    Header { src_port: ports.host, dst_port: ports.guest, op: op::RESET, ..Header::default() }
}

impl VirtioDevice for Vsock {
    type State = VsockState;
    const NAME: &'static str = "vsock";
    const ID: u32 = VIRTIO_ID_VSOCK;
    const QUEUE_SIZES: &'static [u16] = &[128, 128, 8];

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&u64::from(GUEST_CID).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        self.send(driver)
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        match queue {
            TRANSMIT => self.receive(driver)?,
            // Nothing ever happens that the guest would have to be told of by an event.
            EVENTS => return Ok(()),
            _ => {}
        }
        self.send(driver)
    }

    fn event(
        &mut self,
        key: u32,
        events: EventSet,
        driver: Option<&mut Driver<'_>>,
    ) -> Result<(), DeviceError> {
        let now = Instant::now();
        if key == TIMER_KEY {
            self.ticking = false;
            self.muxer.tick(now);
        } else {
            self.muxer.event(key, events, now);
        }
        self.watch_clock();
        driver.map_or(Ok(()), |driver| self.send(driver))
    }

    fn reset(&mut self) {
        self.muxer.forget_guest();
    }

    fn save(&self) -> VsockState {
        VsockState { next_host_port: self.muxer.next_host_port() }
    }
}

impl MachineDevice for Vsock {
    /// A listening unix stream socket.
    type Backend = OwnedFd;

    fn make(listener: OwnedFd, saved: Option<&VsockState>, poller: &Poller) -> Result<Self, MakeError> {
        Ok(match saved {
            Some(saved) => Self::restore(saved, listener, poller.clone())?,
            None => Self::new(listener, poller.clone())?,
        })
    }
}
