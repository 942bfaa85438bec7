//! A driver for tests and fuzzing: it brings a device up through its registers as a guest kernel would, puts chains on its
//! rings, and runs the event loop by hand.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::event_loop::EventLoop;
use super::mmio::{DeviceRestoreError, MmioTransport, SavedDevice, TransportContext};
use super::{DeviceError, Poller, VirtioDevice, features};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;

/// Bytes of guest memory.
pub const MEMORY: usize = 8 << 20;
/// Each ring has its tables in a window of this size, from address 0.
const RING_WINDOW: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0xa000;
/// Buffers are handed out from here, round and round.
const BUFFERS: u64 = 1 << 20;

/// A descriptor's flags (virtio 1.3, 2.7.5).
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// One buffer of a chain.
pub enum Part<'a> {
    /// The device reads these bytes.
    Out(&'a [u8]),
    /// The device may write so many bytes.
    In(usize),
}

/// A chain that was offered.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its first descriptor.
    pub head: u16,
    /// Address and length of each buffer.
    pub buffers: Vec<(u64, usize)>,
}

#[derive(Default)]
struct DriverRing {
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// A device under test, its guest memory and its driver.
pub struct Rig<D> {
    /// Guest memory.
    pub memory: GuestMemory,
    /// The device on its bus.
    pub transport: Arc<MmioTransport<D>>,
    /// The loop that runs it.
    pub events: EventLoop,
    /// What it reported to the VM's owner.
    pub failures: Arc<Mutex<Vec<DeviceError>>>,
    rings: Vec<DriverRing>,
    next_buffer: u64,
}

impl<D: VirtioDevice> Rig<D> {
    /// A device whose driver has not started.
    pub fn cold(make: impl FnOnce(Poller) -> D) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("a small mapping");
        Self::in_memory(memory, make)
    }

    /// The same in a guest with more memory than [`MEMORY`] from address 0.
    pub fn in_memory(memory: GuestMemory, make: impl FnOnce(Poller) -> D) -> Self {
        let mut events = EventLoop::new().expect("an epoll instance");
        let poller = events.poller();
        let failures: Arc<Mutex<Vec<DeviceError>>> = Arc::default();
        let sink = failures.clone();
        let context = TransportContext {
            memory: memory.clone(),
            poller: poller.clone(),
            on_failure: Arc::new(move |error| sink.lock().expect("no panic").push(error)),
        };
        let transport = Arc::new(MmioTransport::new(make(poller.clone()), context).expect("eventfds"));
        events.subscribe(&poller, transport.clone());
        let rings = D::QUEUE_SIZES.iter().map(|_| DriverRing::default()).collect();
        Self { memory, transport, events, failures, rings, next_buffer: BUFFERS }
    }

    /// A device whose driver accepted all of its features and is running.
    pub fn running(make: impl FnOnce(Poller) -> D) -> Self {
        let mut rig = Self::cold(make);
        rig.start(u64::MAX);
        rig
    }

    /// The same guest with its device built anew from the saved state, as after a restore of the VM.
    ///
    /// # Errors
    /// When the state is refused.
    pub fn restored(
        self,
        saved: &SavedDevice<D::State>,
        make: impl FnOnce(Poller) -> D,
    ) -> Result<Self, DeviceRestoreError> {
        let mut events = EventLoop::new()?;
        let poller = events.poller();
        let failures: Arc<Mutex<Vec<DeviceError>>> = Arc::default();
        let sink = failures.clone();
        let context = TransportContext {
            memory: self.memory.clone(),
            poller: poller.clone(),
            on_failure: Arc::new(move |error| sink.lock().expect("no panic").push(error)),
        };
        let transport = Arc::new(MmioTransport::restore(make(poller.clone()), saved, context)?);
        events.subscribe(&poller, transport.clone());
        transport.resume();
        Ok(Self { transport, events, failures, ..self })
    }

    /// Brings the driver up; it accepts the offered features that are in `wanted`.
    pub fn start(&mut self, wanted: u64) {
        let offered = (0..2).fold(0, |all, page| {
            self.write(0x14, page);
            all | u64::from(self.read(0x10)) << (32 * page)
        });
        let accepted = offered & wanted | features::VERSION_1;
        self.write(0x70, 1);
        self.write(0x70, 3);
        for page in 0..2 {
            self.write(0x24, page);
            self.write(0x20, (accepted >> (32 * page)) as u32);
        }
        self.write(0x70, 11);
        for (queue, size) in (0..).zip(D::QUEUE_SIZES) {
            let base = (u64::from(queue) * RING_WINDOW) as u32;
            self.write(0x30, queue);
            self.write(0x38, u32::from(*size));
            self.write(0x80, base);
            self.write(0x90, base + AVAILABLE as u32);
            self.write(0xa0, base + USED as u32);
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
        self.run();
    }

    /// Resets the device and forgets the rings.
    pub fn reset(&mut self) {
        self.write(0x70, 0);
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            *ring = DriverRing::default();
            let zeroes = vec![0; RING_WINDOW as usize];
            self.memory
                .write_slice(&zeroes, GuestAddress(queue as u64 * RING_WINDOW))
                .expect("inside memory");
        }
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Puts a chain on a ring, without a kick.
    pub fn offer(&mut self, queue: usize, parts: &[Part<'_>]) -> Offer {
        let size = D::QUEUE_SIZES[queue];
        let head = self.rings[queue].next_descriptor;
        let mut buffers = Vec::new();
        for (place, part) in parts.iter().enumerate() {
            let (length, write) = match part {
                Part::Out(bytes) => (bytes.len(), 0),
                Part::In(length) => (*length, WRITE),
            };
            let address = self.buffer(length);
            if let Part::Out(bytes) = part {
                self.memory.write_slice(bytes, GuestAddress(address)).expect("inside memory");
            }
            let next = if place + 1 < parts.len() { NEXT } else { 0 };
            let index = (head + place as u16) % size;
            self.describe(queue, index, address, length as u32, write | next, (index + 1) % size);
            buffers.push((address, length));
        }
        self.rings[queue].next_descriptor = (head + parts.len() as u16) % size;
        self.publish(queue, head);
        Offer { head, buffers }
    }

    /// Fills in one descriptor, whatever it says.
    pub fn describe(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let place = queue as u64 * RING_WINDOW + 16 * u64::from(index);
        self.describe_at(place, address, length, flags, next);
    }

    /// Fills in one descriptor of an indirect table.
    pub fn describe_at(&self, place: u64, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(place)).expect("inside memory");
    }

    /// Makes the chain that starts at `head` available.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let base = queue as u64 * RING_WINDOW + AVAILABLE;
        let slot = u64::from(self.rings[queue].available % D::QUEUE_SIZES[queue]);
        self.memory.write_obj(head, GuestAddress(base + 4 + 2 * slot)).expect("inside memory");
        let next = self.rings[queue].available.wrapping_add(1);
        self.set_available(queue, next);
    }

    /// Sets the available index, whatever it is.
    pub fn set_available(&mut self, queue: usize, index: u16) {
        self.rings[queue].available = index;
        let place = queue as u64 * RING_WINDOW + AVAILABLE + 2;
        self.memory.write_obj(index, GuestAddress(place)).expect("inside memory");
    }

    /// Kicks a queue and runs the loop until nothing is left to do.
    pub fn kick(&mut self, queue: usize) {
        self.write(0x50, queue as u32);
        self.run();
    }

    /// Runs the loop until nothing is left to do.
    ///
    /// # Panics
    /// When it does not come to rest.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if self.events.turn(0).expect("epoll works") == 0 {
                return;
            }
        }
        panic!("the device does not come to rest");
    }

    /// Runs the loop until nothing is left to do, or for so many turns.
    pub fn run_for(&mut self, turns: usize) {
        for _ in 0..turns {
            if self.events.turn(0).expect("epoll works") == 0 {
                return;
            }
        }
    }

    /// Where the device publishes how much it gave back.
    pub fn used_index(&self, queue: usize) -> u64 {
        queue as u64 * RING_WINDOW + USED + 2
    }

    /// The next chain that the device gave back: its head, and the bytes written.
    pub fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let base = queue as u64 * RING_WINDOW + USED;
        let index: u16 = self.memory.read_obj(GuestAddress(self.used_index(queue))).expect("inside memory");
        let ring = &mut self.rings[queue];
        if index == ring.used {
            return None;
        }
        let slot = u64::from(ring.used % D::QUEUE_SIZES[queue]);
        ring.used = ring.used.wrapping_add(1);
        let element: [u32; 2] = [0, 4].map(|field| {
            self.memory.read_obj(GuestAddress(base + 4 + 8 * slot + field)).expect("inside memory")
        });
        Some((element[0] as u16, element[1]))
    }

    /// The next chain that the device gives back, for which another thread may have something to do first; `None` after five
    /// seconds.
    pub fn wait_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        for _ in 0..500 {
            if let Some(used) = self.used(queue) {
                return Some(used);
            }
            self.events.turn(10).expect("epoll works");
        }
        None
    }

    /// Offers a chain, kicks, and returns what the device wrote to all of its `In` parts.
    ///
    /// # Panics
    /// When the device does not give it back.
    pub fn ask(&mut self, queue: usize, parts: &[Part<'_>]) -> Vec<u8> {
        let offer = self.offer(queue, parts);
        self.kick(queue);
        let used = self.wait_used(queue).expect("the device gave the chain back");
        assert_eq!(used.0, offer.head);
        let written = parts.iter().zip(&offer.buffers).filter(|(part, _)| matches!(part, Part::In(_)));
        written.flat_map(|(_, (address, length))| self.bytes(*address, *length)).collect()
    }

    /// Copies out of guest memory.
    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("inside memory");
        bytes
    }

    /// The only failure that was reported.
    ///
    /// # Panics
    /// When there is not exactly one.
    pub fn failure(&self) -> DeviceError {
        match &self.failures.lock().expect("no panic")[..] {
            [one] => one.clone(),
            others => panic!("expected one failure, got {others:?}"),
        }
    }

    fn buffer(&mut self, length: usize) -> u64 {
        let end = MEMORY as u64;
        assert!((length as u64) < end - BUFFERS);
        if self.next_buffer + length as u64 > end {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        self.next_buffer += length as u64;
        address
    }
}
