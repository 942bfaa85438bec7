//! One vsock connection: a unix stream on the host side, packets on the guest side.
//!
//! ```text
//!   host asks                guest asks
//!       v                        v
//!   Requesting --RESPONSE-->   Open   --- guest: SHUTDOWN of both directions, or RESET ---> Draining --> done
//!       |                        |                                                             |
//!       +- refused, given up,    +- host closes: SHUTDOWN is sent, the guest's answer ends it  +- when the host has
//!          late: done                                                                             taken everything
//! ```
//!
//! Flow control works by credit in both directions (virtio 1.3, 5.10.6.3): each side tells the size of its buffer and how
//! much it has taken out of it. Bytes from the guest go straight from guest memory to the stream; only what the stream
//! does not take is copied to a buffer, which the credit bounds at [`BUFFER_BYTES`]. Bytes to the guest are read straight
//! into its memory, and no more than it has room for. Nothing that the guest sent before it closed is lost.
//!
//! Whether packets are well formed is the device's business, which connection they are for, the muxer's.

use std::io::{self, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use crate::virtio::{Buffers, EventSet, sys};

/// Most bytes that are kept for a host program which does not read; told to the guest as credit.
pub const BUFFER_BYTES: u32 = 256 * 1024;
/// The guest is told of room when so much has become free since it was told last.
const CREDIT_STEP: u32 = BUFFER_BYTES / 2;
/// How long the guest may take to answer a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// On the host.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    /// The host wants it, the guest has not answered.
    Requesting,
    /// Bytes flow.
    Open,
    /// The guest is done with it, the host has not taken all bytes.
    Draining,
}

/// What becomes of a connection after a packet or an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// The guest is done with it, or broke its rules, and is to be told by a reset. What it sent before is still
    /// delivered.
    Reset,
    /// The guest has ended it. What it sent before is still delivered.
    Ended,
}

/// A connection.
pub struct Connection {
    /// Its ends.
    pub ports: Ports,
    stream: UnixStream,
    state: ConnectionState,
    /// `REQUEST` or `RESPONSE`, while it is to be sent.
    opening: Option<u16>,
    /// When an answer to the request is late; none before the request was sent.
    deadline: Option<Instant>,

    /// Bytes from the guest that the stream has not taken.
    backlog: Backlog,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// `forwarded` as last told to the guest.
    announced: Wrapping<u32>,
    credit_wanted: bool,
    /// The stream takes no more bytes, for good.
    host_deaf: bool,
    /// The host program sees the end of the guest's bytes.
    end_passed_on: bool,

    sent: Wrapping<u32>,
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    /// The stream may have bytes for the guest, or its end.
    readable: bool,
    /// The host program has closed its writing side.
    host_silent: bool,
    /// The host program has closed the stream altogether.
    host_gone: bool,

    /// Directions that the guest has shut down, as its flags.
    guest_shutdown: u32,
    /// Directions that the host has shut down, as flags for the guest.
    host_shutdown: u32,
    /// Of these, what the guest was told.
    told_shutdown: u32,

    /// The stream is watched for room.
    watching_room: bool,
    /// It waits in the muxer's line for its turn.
    lined_up: bool,
}

impl Connection {
    /// A connection that the host wants; its handshake line was taken.
    pub fn to_guest(ports: Ports, stream: UnixStream) -> Self {
        Self::new(ports, stream, ConnectionState::Requesting, op::REQUEST)
    }

    /// A connection that the guest asked for and an acceptor has taken.
    pub fn from_guest(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, ConnectionState::Open, op::RESPONSE);
        connection.take_credit(request);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, state: ConnectionState, opening: u16) -> Self {
        Self {
            ports,
            stream,
            state,
            opening: Some(opening),
            deadline: None,
            backlog: Backlog::new(BUFFER_BYTES as usize),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            credit_wanted: false,
            host_deaf: false,
            end_passed_on: false,
            sent: Wrapping(0),
            guest_buffer: 0,
            guest_forwarded: Wrapping(0),
            readable: true,
            host_silent: false,
            host_gone: false,
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            watching_room: false,
            lined_up: false,
        }
    }

    /// The stream, to watch it.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the stream must be watched for room, if that has changed since the last call.
    pub fn watch_change(&mut self) -> Option<bool> {
        let wanted = !self.backlog.is_empty();
        (std::mem::replace(&mut self.watching_room, wanted) != wanted).then_some(wanted)
    }

    /// Whether it has something for the guest and is not in line for it yet; then it is.
    pub fn line_up(&mut self) -> bool {
        let newly = !self.lined_up && (self.due().is_some() || self.readable() > 0);
        self.lined_up |= newly;
        newly
    }

    /// Its turn has come.
    pub fn step_out(&mut self) {
        self.lined_up = false;
    }

    /// Whether the guest was sent something about it, and so must be told of its end.
    pub fn known_to_guest(&self) -> bool {
        self.opening != Some(op::REQUEST)
    }

    /// Whether it goes on when the guest has forgotten everything: the guest does not know of it yet, or no more.
    pub fn outlives_guest(&self) -> bool {
        !self.known_to_guest() || self.state == ConnectionState::Draining
    }

    /// Whether nothing is left to deliver of a connection that the guest has ended.
    pub fn done(&self) -> bool {
        self.state == ConnectionState::Draining && self.backlog.is_empty()
    }

    /// Whether the host has given up before the guest answered, or the guest is late with its answer.
    pub fn abandoned(&self, now: Instant) -> bool {
        self.state == ConnectionState::Requesting
            && (self.host_gone || self.deadline.is_some_and(|deadline| now >= deadline))
    }

    /// Whether it waits for an answer, and so needs to be looked at when time goes by.
    pub fn waits(&self) -> bool {
        self.state == ConnectionState::Requesting
    }

    // --- from the guest

    /// Handles a packet of the guest for this connection.
    pub fn receive(&mut self, header: &Header, payload: &Buffers<'_>) -> Verdict {
        self.take_credit(header);
        match (header.op, self.state) {
            (op::RESPONSE, ConnectionState::Requesting) if self.opening.is_none() => self.answered(),
            (op::DATA, ConnectionState::Open) => self.deliver(payload),
            (op::SHUTDOWN, ConnectionState::Open) => self.shut_down(header.flags & SHUTDOWN_BOTH),
            (op::CREDIT_UPDATE, ConnectionState::Open) => Verdict::Keep,
            (op::CREDIT_REQUEST, ConnectionState::Open) => {
                self.credit_wanted = true;
                Verdict::Keep
            }
            (op::RESET, _) => Verdict::Ended,
            _ => Verdict::Reset,
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
    }

    /// The guest accepted: the host program is told by the second line of the handshake.
    fn answered(&mut self) -> Verdict {
        self.state = ConnectionState::Open;
        self.deadline = None;
        let line = format!("OK {}\n", self.ports.host);
        // Nothing was written to the stream before, so a short write means that its reader is gone.
        match (&self.stream).write(line.as_bytes()) {
            Ok(count) if count == line.len() => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    fn deliver(&mut self, payload: &Buffers<'_>) -> Verdict {
        let free = BUFFER_BYTES - (self.received - self.forwarded).0;
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || payload.len() > free as usize {
            return Verdict::Reset;
        }
        self.received += payload.len() as u32;
        let mut rest = payload.clone();
        while !rest.is_empty() && self.backlog.is_empty() && !self.host_deaf {
            match sys::writev(self.stream.as_fd(), &rest) {
                Ok(count) => {
                    self.forwarded += count as u32;
                    rest.split_front(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.lose_reader(),
            }
        }
        if self.host_deaf {
            self.forwarded = self.received;
        } else {
            self.backlog.push(rest);
        }
        Verdict::Keep
    }

    fn shut_down(&mut self, directions: u32) -> Verdict {
        self.guest_shutdown |= directions;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            return Verdict::Reset;
        }
        if directions & SHUTDOWN_RECEIVE != 0 {
            // Fails only when the host program has closed the stream already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.pass_on_end();
        Verdict::Keep
    }

    /// The guest is done with the connection: delivers what is left.
    pub fn drain(&mut self) {
        self.state = ConnectionState::Draining;
        if self.host_deaf {
            self.backlog.clear();
        }
    }

    // --- to the host

    /// Handles events on the stream.
    pub fn host_event(&mut self, events: EventSet) {
        self.host_silent |= events.contains(EventSet::READ_HANG_UP);
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.host_silent = true;
            self.host_gone = true;
            if self.host_shutdown & SHUTDOWN_SEND != 0 {
                self.host_shutdown = SHUTDOWN_BOTH;
            }
        }
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if events.intersects(EventSet::OUT | EventSet::HANG_UP | EventSet::ERROR) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() && !self.host_deaf {
            match (&self.stream).write_vectored(&self.backlog.pieces()) {
                Ok(count) => {
                    self.backlog.consume(count);
                    self.forwarded += count as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.lose_reader(),
            }
        }
        self.pass_on_end();
    }

    /// The host program reads no more: the guest is told, and what it sends meanwhile is dropped.
    fn lose_reader(&mut self) {
        self.host_deaf = true;
        self.host_shutdown |= SHUTDOWN_RECEIVE;
        self.backlog.clear();
        self.forwarded = self.received;
    }

    /// Lets the host program see the end of the guest's bytes, once it has them all.
    fn pass_on_end(&mut self) {
        let over = self.guest_shutdown & SHUTDOWN_SEND != 0 && self.backlog.is_empty();
        // Once: a stream whose far end is closed tells of every shutdown by an event, which would lead here again.
        if over && !std::mem::replace(&mut self.end_passed_on, true) {
            // Fails only when the host program has closed the stream already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    // --- to the guest

    /// The next packet without payload that is due: its operation and flags.
    pub fn due(&self) -> Option<(u16, u32)> {
        if let Some(opening) = self.opening {
            return Some((opening, 0));
        }
        if self.state != ConnectionState::Open {
            return None;
        }
        let freed = (self.forwarded - self.announced).0;
        if self.host_shutdown & !self.told_shutdown != 0 {
            Some((op::SHUTDOWN, self.host_shutdown))
        } else if self.credit_wanted || freed >= CREDIT_STEP {
            Some((op::CREDIT_UPDATE, 0))
        } else {
            None
        }
    }

    /// How many bytes may be read for the guest now; 0 when there is nothing to read or no room for it.
    pub fn readable(&self) -> usize {
        let open = self.state == ConnectionState::Open && self.opening.is_none() && self.readable;
        if !open || self.host_shutdown & SHUTDOWN_SEND != 0 || self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            return 0;
        }
        let in_flight = (self.sent - self.guest_forwarded).0;
        self.guest_buffer.saturating_sub(in_flight) as usize
    }

    /// Reads for the guest, at most what [`Self::readable`] said. Returns the number of bytes; at 0 there may be a
    /// shutdown to be sent.
    pub fn read(&mut self, into: &Buffers<'_>) -> usize {
        match sys::readv(self.stream.as_fd(), into) {
            Ok(0) => self.end_of_stream(),
            Ok(count) => {
                self.sent += count as u32;
                // A short read has emptied the stream, and what comes later is a new event; but its end may be told
                // together with its last bytes.
                self.readable = count == into.len() || self.host_silent;
                return count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host_gone = true;
                self.end_of_stream();
            }
        }
        0
    }

    fn end_of_stream(&mut self) {
        self.readable = false;
        self.host_shutdown |= if self.host_gone { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
    }

    /// The header of a packet that is sent now; it counts as sent.
    pub fn header(&mut self, op: u16, flags: u32, len: usize, now: Instant) -> Header {
        match op {
            op::REQUEST => {
                self.opening = None;
                self.deadline = Some(now + PATIENCE);
            }
            op::RESPONSE => self.opening = None,
            op::SHUTDOWN => self.told_shutdown |= flags,
            _ => {}
        }
        self.credit_wanted = false;
        self.announced = self.forwarded;
        Header {
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: len as u32,
            op,
            flags,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.forwarded.0,
            ..Header::default()
        }
    }
}
