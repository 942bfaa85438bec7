//! Serves the control socket of a running VM: a subscriber of the event loop, so nothing in here blocks.
//!
//! ```text
//! event loop --> Server --Client::receive--> Machine::handle(request, descriptors) --Response--> Client::answer
//! ```
//!
//! One client is served at a time; others wait in the listener's queue. A client that breaks the rules is
//! dropped, and the next one is taken. Made by `main` once the VM runs. What a packet is, `control` knows;
//! what a request means, `machine`.

use std::{
    io,
    sync::{Arc, Mutex},
};

use isopod_protocols::vmm::{ErrorKind, Response};

use crate::{
    control::{Client, Listener, Received, error},
    log,
    machine::Machine,
    virtio::{EventSet, Poller, event_loop::Subscriber},
};

/// Event key of the listener; clients have numbers above, each its own.
const LISTENER: u32 = 0;

/// Serves the control socket of a running VM, on the event loop.
pub struct Server {
    listener: Listener,
    machine: Arc<Machine>,
    poller: Poller,
    current: Mutex<CurrentClient>,
}

/// The client that is served now, with the event key that only it has.
struct CurrentClient {
    client: Option<Client>,
    key: u32,
}

impl Server {
    /// Goes on with the client that has booted the VM.
    pub fn new(
        listener: Listener,
        client: Client,
        machine: Arc<Machine>,
        poller: Poller,
    ) -> io::Result<Arc<Self>> {
        let key = LISTENER + 1;
        poller.add(client.socket(), key, EventSet::IN)?;
        let current = Mutex::new(CurrentClient { client: Some(client), key });
        Ok(Arc::new(Self { listener, machine, poller, current }))
    }

    /// Takes the next client. While it stays, the listener is not watched.
    fn accept(&self, current: &mut CurrentClient) {
        match self.listener.accept() {
            Ok(Some(client)) => {
                current.key = current.key.checked_add(1).unwrap_or(LISTENER + 1);
                let watched = self.poller.add(client.socket(), current.key, EventSet::IN);
                if watched.is_ok() && self.poller.remove(self.listener.socket()).is_ok() {
                    current.client = Some(client);
                }
            }
            Ok(None) => {}
            Err(error) => log::line(format_args!("control socket: accept: {error}")),
        }
    }

    /// Answers one message of the current client.
    fn serve(&self, current: &mut CurrentClient) {
        let Some(client) = &mut current.client else { return };
        let answer = match client.receive() {
            Received::Request(request, fds) => self.machine.handle(request, fds),
            Received::Malformed(what) => error(ErrorKind::Invalid, what),
            Received::Nothing => return,
            Received::Gone => return self.close(current),
        };
        if let Response::Error { message, .. } = &answer {
            log::line(format_args!("request failed: {message}"));
        }
        if client.answer(&answer).is_err() {
            self.close(current);
        }
    }

    /// Closes the current client and listens for the next.
    fn close(&self, current: &mut CurrentClient) {
        current.client = None;
        if let Err(error) = self.poller.add(self.listener.socket(), LISTENER, EventSet::IN) {
            log::line(format_args!("control socket: cannot wait for the next client: {error}"));
        }
    }
}

impl Subscriber for Server {
    fn handle(&self, key: u32, _events: EventSet) {
        let mut current = self.current.lock().expect("only the event loop takes this lock");
        match key {
            LISTENER if current.client.is_none() => self.accept(&mut current),
            key if key == current.key => self.serve(&mut current),
            // An event of a client that has left since.
            _ => {}
        }
    }
}
