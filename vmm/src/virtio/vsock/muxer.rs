//! All connections of one vsock device: finds the connection of each packet and event, opens and ends them, and knows
//! which of them have something for the guest.
//!
//! ```text
//!  guest packets --> receive() --> Connection --> unix streams
//!  host events   --> event()   --> PendingClient, Connection
//!  next_ready() <-- connections with something to send, each in its turn;  take_reset() <-- resets without a connection
//! ```
//!
//! The number of connections, of resets that wait, and of announced ports is bounded, so neither a guest nor a host
//! program can make it grow without end. It opens nothing by path: host programs come in through a listening socket that
//! was given, connections of the guest go out through acceptors that were given ([`Muxer::listen`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::client::{Handshake, PendingClient};
use super::connection::{Connection, Ports, Verdict};
use super::packet::{Header, op};
use crate::virtio::{Buffers, Counter, EventSet, Poller};

/// Most connections, handshakes included. Each costs a descriptor and at most a backlog.
pub const MAX_CONNECTIONS: usize = 512;
/// Most host ports that can be announced.
const MAX_ACCEPTORS: usize = 64;
/// Resets that wait for room; more are dropped, as the guest gives up by itself.
const MAX_RESETS: usize = 1024;
/// Event key of the listening socket. The device uses the other small ones.
pub const LISTENER_KEY: u32 = 0;
/// Keys of streams start here.
const FIRST_STREAM_KEY: u32 = 16;
const KEY_LIMIT: u32 = 1 << 31;
/// Host ports of connections that the host opens start here.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// What a stream is watched for. Room is added only while something waits for it.
const WATCH: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);

/// Why a port was not announced.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The table is full.
    #[error("cannot announce vsock port {0}: {MAX_ACCEPTORS} ports are announced already")]
    Full(u32),
}

/// The connections.
pub struct Muxer {
    poller: Poller,
    listener: UnixListener,
    /// Host programs wait because there was no room for them.
    listener_stalled: bool,
    acceptors: BTreeMap<u32, OwnedFd>,
    clients: BTreeMap<u32, PendingClient>,
    connections: BTreeMap<u32, Connection>,
    /// Connections that the guest knows or is to know, by their ports.
    by_ports: BTreeMap<Ports, u32>,
    /// Connections that may still wait for the guest's first answer.
    requesting: BTreeSet<u32>,
    ready: VecDeque<u32>,
    resets: VecDeque<Ports>,
    next_key: u32,
    next_host_port: u32,
    open: Counter,
}

impl Muxer {
    /// A muxer for host programs that connect to `listener`.
    pub fn new(listener: OwnedFd, poller: Poller, next_host_port: u32) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        poller.add(&listener, LISTENER_KEY, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        Ok(Self {
            poller,
            listener,
            listener_stalled: false,
            acceptors: BTreeMap::new(),
            clients: BTreeMap::new(),
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            requesting: BTreeSet::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_key: FIRST_STREAM_KEY,
            next_host_port: next_host_port.max(FIRST_HOST_PORT),
            open: Counter::default(),
        })
    }

    /// Number of connections that are open now.
    pub fn open_connections(&self) -> Counter {
        self.open.clone()
    }

    /// The port of the next connection from the host, to save.
    pub fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Passes connections of the guest to `port` on to `acceptor`. Replaces the one before.
    pub fn listen(&mut self, port: u32, acceptor: OwnedFd) -> Result<(), ListenError> {
        if self.acceptors.len() >= MAX_ACCEPTORS && !self.acceptors.contains_key(&port) {
            return Err(ListenError::Full(port));
        }
        self.acceptors.insert(port, acceptor);
        Ok(())
    }

    // --- from the host

    /// Handles an event on the listening socket or a stream.
    pub fn event(&mut self, key: u32, events: EventSet, now: Instant) {
        if key == LISTENER_KEY {
            self.accept(now);
        } else if self.clients.contains_key(&key) {
            self.advance_client(key, now);
        } else if let Some(connection) = self.connections.get_mut(&key) {
            connection.host_event(events);
            self.settle(key, now);
        }
    }

    /// Ends handshakes and requests that are late. Returns whether there are others to look at later.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.clients.retain(|_, client| !client.late(now));
        let connections = &self.connections;
        self.requesting.retain(|key| connections.get(key).is_some_and(Connection::waits));
        for key in self.requesting.iter().copied().collect::<Vec<_>>() {
            self.settle(key, now);
        }
        self.retry_accept(now);
        self.waits()
    }

    /// Whether [`Self::tick`] is needed.
    pub fn waits(&self) -> bool {
        !self.clients.is_empty() || !self.requesting.is_empty()
    }

    fn accept(&mut self, now: Instant) {
        self.listener_stalled = false;
        loop {
            if self.full() {
                self.listener_stalled = true;
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.add_client(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Out of descriptors or memory: tried again when a connection has ended.
                Err(_) => {
                    self.listener_stalled = true;
                    return;
                }
            }
        }
    }

    fn retry_accept(&mut self, now: Instant) {
        if self.listener_stalled && !self.full() {
            self.accept(now);
        }
    }

    fn full(&self) -> bool {
        self.clients.len() + self.connections.len() >= MAX_CONNECTIONS
    }

    fn add_client(&mut self, stream: UnixStream, now: Instant) {
        let key = self.new_key();
        // Without these the stream cannot be served: its program sees it closed.
        if stream.set_nonblocking(true).is_ok() && self.poller.add(&stream, key, WATCH).is_ok() {
            self.clients.insert(key, PendingClient::new(stream, now));
        }
    }

    fn advance_client(&mut self, key: u32, now: Instant) {
        match self.clients[&key].advance() {
            Handshake::Waiting => {}
            Handshake::Broken => {
                self.clients.remove(&key);
                self.retry_accept(now);
            }
            Handshake::Connect(guest) => {
                let stream = self.clients.remove(&key).expect("it was looked at just now").into_stream();
                let ports = Ports { host: self.new_host_port(guest), guest };
                // Asking again for the same events has those told again that came during the handshake.
                if self.poller.modify(&stream, key, WATCH).is_ok() {
                    self.requesting.insert(key);
                    self.insert(key, Connection::to_guest(ports, stream), now);
                }
            }
        }
    }

    fn new_key(&mut self) -> u32 {
        loop {
            let key = self.next_key;
            self.next_key = if key + 1 < KEY_LIMIT { key + 1 } else { FIRST_STREAM_KEY };
            if !self.clients.contains_key(&key) && !self.connections.contains_key(&key) {
                return key;
            }
        }
    }

    fn new_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn insert(&mut self, key: u32, connection: Connection, now: Instant) {
        self.by_ports.insert(connection.ports, key);
        self.connections.insert(key, connection);
        self.open.set(self.connections.len());
        self.settle(key, now);
    }

    // --- from the guest

    /// Answers a packet that is for nobody with a reset, unless it is one.
    pub fn refuse(&mut self, header: &Header) {
        if header.op != op::RESET {
            self.reset(Ports { host: header.dst_port, guest: header.src_port });
        }
    }

    /// Handles a packet of the guest, addressed to the host.
    pub fn receive(&mut self, header: &Header, payload: &Buffers<'_>, now: Instant) {
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let Some(key) = self.by_ports.get(&ports).copied() else {
            match header.op {
                op::REQUEST => self.open_from_guest(ports, header, now),
                _ => self.refuse(header),
            }
            return;
        };
        let connection = self.connections.get_mut(&key).expect("ports lead to a connection");
        match connection.receive(header, payload) {
            Verdict::Keep => {}
            Verdict::Reset => {
                self.reset(ports);
                self.detach(key);
            }
            Verdict::Ended => self.detach(key),
        }
        self.settle(key, now);
    }

    fn open_from_guest(&mut self, ports: Ports, request: &Header, now: Instant) {
        let stream = if self.full() { None } else { self.hand_over(ports.host) };
        let key = self.new_key();
        match stream {
            Some(stream) if self.poller.add(&stream, key, WATCH).is_ok() => {
                self.insert(key, Connection::from_guest(ports, stream, request), now);
            }
            _ => self.reset(ports),
        }
    }

    /// Makes a stream and passes its far end to the acceptor of `port`. `None` if nobody takes it.
    fn hand_over(&mut self, port: u32) -> Option<UnixStream> {
        let acceptor = self.acceptors.get(&port)?;
        let (near, far) = UnixStream::pair().ok()?;
        near.set_nonblocking(true).ok()?;
        let sent = sendmsg::<()>(
            acceptor.as_raw_fd(),
            &[IoSlice::new(&port.to_le_bytes())],
            &[ControlMessage::ScmRights(&[far.as_raw_fd()])],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            Ok(_) => Some(near),
            Err(nix::errno::Errno::EAGAIN) => None,
            Err(_) => {
                // The program behind it is gone; another one will announce the port again.
                self.acceptors.remove(&port);
                None
            }
        }
    }

    /// Takes a connection from the guest's sight; what it has accepted is still delivered.
    fn detach(&mut self, key: u32) {
        let connection = self.connections.get_mut(&key).expect("callers have found it");
        connection.drain();
        self.by_ports.remove(&connection.ports);
    }

    fn reset(&mut self, ports: Ports) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(ports);
        }
    }

    // --- to the guest

    /// The next connection that may have something for the guest. [`Self::settle`] gives it another turn, behind the
    /// others, if it is not done with this one.
    pub fn next_ready(&mut self) -> Option<(u32, &mut Connection)> {
        let key = self.ready.pop_front()?;
        let connection = self.connections.get_mut(&key).expect("removed connections leave the line");
        connection.step_out();
        Some((key, connection))
    }

    /// The next reset without a connection: to be put back with [`Self::put_back_reset`] if there is no room for it.
    pub fn take_reset(&mut self) -> Option<Ports> {
        self.resets.pop_front()
    }

    /// Puts a reset back in front.
    pub fn put_back_reset(&mut self, ports: Ports) {
        self.resets.push_front(ports);
    }

    /// Drops all that the guest knew of: its driver has started anew. Host programs that were not served yet go on
    /// waiting, and what the guest had finished sending is still delivered.
    pub fn forget_guest(&mut self) {
        self.resets.clear();
        self.connections.retain(|_, connection| connection.outlives_guest());
        let connections = &self.connections;
        self.by_ports.retain(|_, key| connections.contains_key(key));
        self.ready.retain(|key| connections.contains_key(key));
        self.open.set(self.connections.len());
    }

    /// After something happened to a connection: ends it if it is over, watches for room if it needs some, and lines it
    /// up if it has something for the guest.
    pub fn settle(&mut self, key: u32, now: Instant) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let ports = connection.ports;
        if connection.abandoned(now) {
            let known = connection.known_to_guest();
            self.by_ports.remove(&ports);
            self.remove(key, now);
            if known {
                self.reset(ports);
            }
            return;
        }
        if connection.done() {
            return self.remove(key, now);
        }
        if let Some(room) = connection.watch_change() {
            let room = if room { EventSet::OUT } else { EventSet::empty() };
            // Cannot fail: the stream is open and registered.
            let _ = self.poller.modify(connection.stream(), key, WATCH | room);
        }
        if connection.line_up() {
            self.ready.push_back(key);
        }
    }

    fn remove(&mut self, key: u32, now: Instant) {
        self.connections.remove(&key);
        self.ready.retain(|waiting| *waiting != key);
        self.open.set(self.connections.len());
        self.retry_accept(now);
    }
}

#[cfg(test)]
impl Muxer {
    /// Panics unless the tables agree with each other and keep their bounds.
    pub fn check(&self) {
        assert!(self.clients.len() + self.connections.len() <= MAX_CONNECTIONS);
        assert!(self.resets.len() <= MAX_RESETS);
        assert_eq!(self.open.get(), self.connections.len() as u64);
        for (ports, key) in &self.by_ports {
            assert_eq!(self.connections[key].ports, *ports);
        }
        let mut line: Vec<_> = self.ready.iter().collect();
        line.sort();
        line.dedup();
        assert_eq!(line.len(), self.ready.len(), "a connection is in line once");
        assert!(line.iter().all(|key| self.connections.contains_key(key)));
        assert!(self.connections.keys().all(|key| !self.clients.contains_key(key)));
        assert!(self.connections.values().all(|connection| !connection.done()));
    }
}
