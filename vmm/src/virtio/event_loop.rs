//! One thread runs all devices: it waits on one epoll instance and hands each event to the device that asked for it.
//!
//! ```text
//! queue kicks (ioeventfd), tap, sockets, timers --> epoll --> EventLoop::run --> Subscriber::handle(key, events)
//! ```
//!
//! A device registers its descriptors through its [`Poller`] under keys of its own. Events are hints: a descriptor may
//! have been closed, or its key given to another, since the event was queued. So handlers use non-blocking calls and
//! keys that they check. Descriptors are watched edge-triggered wherever a handler might leave something unread, or a
//! device that has given up would keep the loop spinning. No handler may block or loop without bound, as all devices
//! share the thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Events taken from the kernel at once.
const BATCH: usize = 64;
/// Slot of the loop's own stop event.
const STOP_SLOT: u64 = u32::MAX as u64;

/// Who gets events. Called on the event loop thread only.
pub trait Subscriber: Send + Sync {
    /// Handles `events` on the descriptor that was registered under `key`.
    fn handle(&self, key: u32, events: EventSet);
}

/// One device's window on the event loop: registers descriptors, from any thread.
#[derive(Clone)]
pub struct Poller {
    epoll: Arc<Epoll>,
    slot: u32,
}

impl Poller {
    /// Watches `fd` for `events` under `key`.
    pub fn add(&self, fd: &impl AsRawFd, key: u32, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), key, events)
    }

    /// Changes what `fd` is watched for.
    pub fn modify(&self, fd: &impl AsRawFd, key: u32, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), key, events)
    }

    /// Stops watching `fd`. Closing the last descriptor of a file does the same.
    pub fn remove(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, fd.as_raw_fd(), 0, EventSet::empty())
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, key: u32, events: EventSet) -> io::Result<()> {
        let token = u64::from(self.slot) << 32 | u64::from(key);
        self.epoll.ctl(operation, fd, EpollEvent::new(events, token))
    }
}

/// Ends [`EventLoop::run`] from any thread.
#[derive(Clone)]
pub struct Stop {
    event: Arc<EventFd>,
    wanted: Arc<AtomicBool>,
}

impl Stop {
    /// Makes the loop return after the handler that runs now.
    pub fn stop(&self) {
        self.wanted.store(true, Ordering::Release);
        // Fails only when the counter is full, which also wakes the loop.
        let _ = self.event.write(1);
    }
}

/// The loop. Made while the VM is built; moved to its thread to run.
pub struct EventLoop {
    epoll: Arc<Epoll>,
    subscribers: Vec<Option<Arc<dyn Subscriber>>>,
    stop: Stop,
}

impl EventLoop {
    /// A loop without subscribers.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let stop =
            Stop { event: Arc::new(EventFd::new(EFD_NONBLOCK)?), wanted: Arc::new(AtomicBool::new(false)) };
        epoll.ctl(
            ControlOperation::Add,
            stop.event.as_raw_fd(),
            EpollEvent::new(EventSet::IN, STOP_SLOT << 32),
        )?;
        Ok(Self { epoll: Arc::new(epoll), subscribers: Vec::new(), stop })
    }

    /// The window for a device that is about to be made. Its events wait until [`Self::subscribe`].
    pub fn poller(&mut self) -> Poller {
        let slot = self.subscribers.len() as u32;
        self.subscribers.push(None);
        Poller { epoll: self.epoll.clone(), slot }
    }

    /// Sends the events of `poller` to `subscriber`.
    pub fn subscribe(&mut self, poller: &Poller, subscriber: Arc<dyn Subscriber>) {
        self.subscribers[poller.slot as usize] = Some(subscriber);
    }

    /// The handle that ends [`Self::run`].
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves events until [`Stop::stop`].
    ///
    /// # Errors
    /// When `epoll_wait` fails for another reason than a signal.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.stop.wanted.load(Ordering::Acquire) {
            self.turn(-1)?;
        }
        Ok(())
    }

    /// Waits at most `timeout_ms` (-1: for ever) and handles one batch of events. Returns their number.
    pub fn turn(&mut self, timeout_ms: i32) -> io::Result<usize> {
        let mut ready = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(timeout_ms, &mut ready) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &ready[..count] {
            let slot = (event.data() >> 32) as usize;
            if let Some(Some(subscriber)) = self.subscribers.get(slot) {
                subscriber.handle(event.data() as u32, event.event_set());
            }
            if self.stop.wanted.load(Ordering::Acquire) {
                break;
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<u32>>);

    impl Subscriber for Log {
        fn handle(&self, key: u32, _events: EventSet) {
            self.0.lock().unwrap().push(key);
        }
    }

    #[test]
    fn events_reach_the_subscriber_that_registered_the_descriptor() {
        let mut events = EventLoop::new().unwrap();
        let (first, second) = (Arc::new(Log::default()), Arc::new(Log::default()));
        let (poll_first, poll_second) = (events.poller(), events.poller());
        events.subscribe(&poll_first, first.clone());
        events.subscribe(&poll_second, second.clone());
        let (near, mut far) = UnixStream::pair().unwrap();
        poll_second.add(&near, 7, EventSet::IN).unwrap();

        assert_eq!(events.turn(0).unwrap(), 0);
        far.write_all(b"x").unwrap();
        assert_eq!(events.turn(0).unwrap(), 1);

        assert!(first.0.lock().unwrap().is_empty());
        assert_eq!(*second.0.lock().unwrap(), [7]);
    }

    #[test]
    fn stop_ends_a_waiting_loop() {
        let mut events = EventLoop::new().unwrap();
        let stop = events.stopper();
        let runner = std::thread::spawn(move || events.run());
        stop.stop();
        runner.join().unwrap().unwrap();
    }
}
