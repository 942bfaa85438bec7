//! One virtqueue of one device: hands out descriptor chains that were checked whole, takes them back, and knows when
//! the driver wants an interrupt.
//!
//! The `virtio-queue` crate walks the available half of the split ring. This layer adds what a hostile driver makes
//! necessary: a chain is read once, in full, before a device sees any of it, and whatever is wrong with it is a
//! [`DeviceError`] instead of a chain that silently ends early. It also bounds how much one event may do, so no driver
//! can keep the shared event loop thread busy by refilling its ring. The used half is written here, as the crate can only
//! publish one element at a time and a frame may take several.

#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::buffers::Buffers;
use super::error::{DeviceError, Fault, SavedStateError};
use crate::memory::GuestMemory;

/// Most buffers in a chain; also the most that one vectored system call takes (`IOV_MAX`).
pub const MAX_BUFFERS: usize = 1024;

/// Chains handed out per event. What is left waits for its turn behind the other devices.
const BUDGET: i32 = 128;

/// Offsets and sizes of the split ring's parts (virtio 1.3, 2.7.6 and 2.7.8).
const AVAILABLE_ELEMENTS: u64 = 4;
const AVAILABLE_ELEMENT_BYTES: u64 = 2;
const USED_INDEX: u64 = 2;
const USED_ELEMENTS: u64 = 4;
const USED_ELEMENT_BYTES: u64 = 8;

/// A descriptor chain, read once and checked.
pub struct Chain<'m> {
    /// Index that gives the chain back, see [`Ring::give_back`].
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers<'m>,
    /// Where the device may write.
    pub writable: Buffers<'m>,
    /// Address of the last byte of `writable`, for a device that answers later; none where it is empty.
    pub last_writable: Option<GuestAddress>,
}

/// What the driver told about a ring. Checked only when it is enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// Descriptors, a power of two.
    pub size: u16,
    /// The driver enabled it.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub available: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// Next entry of the available ring to look at.
    pub next_available: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
    /// Event indices were negotiated.
    pub event_index: bool,
}

/// A virtqueue.
pub struct Ring {
    device: &'static str,
    index: u16,
    /// What the driver set up so far. The `next_*` fields are kept by `queue` once it is ready.
    setup: RingState,
    queue: Queue,
    kick: EventFd,
    /// What is left of this event's [`BUDGET`]; below 0 where a chain was more work than that.
    budget: i32,
    /// Chains were given back since the driver was last considered for an interrupt.
    gave_back: bool,
    /// Next entry of the used ring when it was.
    signalled: u16,
}

impl Ring {
    /// The ring at `index` of `device`, with at most `size` descriptors.
    pub fn new(device: &'static str, index: u16, size: u16) -> std::io::Result<Self> {
        Ok(Self {
            device,
            index,
            setup: RingState::new(size),
            queue: Queue::new(size).expect("devices have queue sizes that are powers of two"),
            kick: EventFd::new(EFD_NONBLOCK)?,
            budget: BUDGET,
            gave_back: false,
            signalled: 0,
        })
    }

    /// The eventfd that tells of new buffers: to be registered with KVM as ioeventfd.
    pub fn kick_event(&self) -> &EventFd {
        &self.kick
    }

    /// Has the ring looked at (again) on the event loop thread.
    pub fn kick(&self) {
        // Fails only when the counter is full, and then the event is pending.
        let _ = self.kick.write(1);
    }

    /// Grants a new budget. Called once per event.
    pub(super) fn start_turn(&mut self) {
        self.budget = BUDGET;
    }

    /// What the driver set up, for the transport's registers.
    pub fn setup(&mut self) -> &mut RingState {
        &mut self.setup
    }

    /// Largest size the driver may choose.
    pub fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    /// Whether the driver enabled the ring.
    pub fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// Checks what the driver set up against guest memory and enables the ring.
    pub fn enable(&mut self, memory: &GuestMemory, event_index: bool) -> Result<(), DeviceError> {
        self.setup.event_index = event_index;
        self.setup.ready = true;
        self.queue = self.setup.build(self.queue.max_size()).ok_or_else(|| self.fault(Fault::BadRing))?;
        self.signalled = self.queue.next_used();
        if self.queue.is_valid(memory) { Ok(()) } else { Err(self.fault(Fault::BadRing)) }
    }

    /// Forgets all the driver said.
    pub fn reset(&mut self) {
        self.queue.reset();
        self.setup = RingState::new(self.queue.max_size());
    }

    /// The next chain; `None` when there is none, and then the driver will kick for the next one, or when this event
    /// has used its budget, and then the ring has kicked itself.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, DeviceError> {
        if self.turn_is_over() { Ok(None) } else { self.pop_beyond_budget(memory) }
    }

    /// Whether this event has used its budget, and then the ring has kicked itself.
    pub fn turn_is_over(&mut self) -> bool {
        let over = self.queue.ready() && self.budget <= 0;
        if over {
            self.kick();
        }
        over
    }

    /// As [`Self::pop`], whatever is left of the budget: for work that takes several chains and is begun only
    /// where [`Self::turn_is_over`] says no. Ended in the middle it would be begun anew in each turn, for
    /// ever.
    pub fn pop_beyond_budget<'m>(
        &mut self,
        memory: &'m GuestMemory,
    ) -> Result<Option<Chain<'m>>, DeviceError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let all_handed_out = self.handed_out() >= self.queue.size();
        loop {
            let next = self.queue.iter(memory).map(|mut chains| chains.next());
            if let Some(chain) = next.map_err(|error| self.queue_fault(&error))? {
                // Each chain has a descriptor of its own for its head, so one of these is with the device
                // already.
                if all_handed_out {
                    return Err(self.fault(Fault::OfferedTwice));
                }
                self.budget -= 1;
                return self.check(memory, chain).map(Some);
            }
            let raced = self.queue.enable_notification(memory);
            if !raced.map_err(|error| self.queue_fault(&error))? {
                return Ok(None);
            }
        }
    }

    /// Puts back the chain that was popped last, as if it had not been.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
        self.budget += 1;
    }

    /// Takes `chains` more off this event's budget, for a chain that was as much work as so many. The next
    /// call of [`Self::pop`] ends the turn once nothing is left.
    pub fn spend(&mut self, chains: u16) {
        self.budget -= i32::from(chains);
    }

    /// Chains that were popped and neither given back nor put back. What a device keeps of its chains is
    /// bounded by this: it is never more than the ring has entries.
    fn handed_out(&self) -> u16 {
        self.queue.next_avail().wrapping_sub(self.queue.next_used())
    }

    /// Gives a chain back to the driver, with `written` bytes in its writable part.
    pub fn give_back(&mut self, memory: &GuestMemory, head: u16, written: usize) -> Result<(), DeviceError> {
        self.give_back_all(memory, &[(head, written)])
    }

    /// Gives chains back in one step, each with the bytes written to it: the driver sees all of them or none. A driver that
    /// runs beside us would take the first part of what belongs together for the whole.
    pub fn give_back_all(
        &mut self,
        memory: &GuestMemory,
        chains: &[(u16, usize)],
    ) -> Result<(), DeviceError> {
        self.gave_back = true;
        let (used, size) = (GuestAddress(self.queue.used_ring()), self.queue.size());
        let mut next = self.queue.next_used();
        let mut put = || -> Result<(), GuestMemoryError> {
            for (head, written) in chains {
                let element = [u32::from(*head), u32::try_from(*written).unwrap_or(u32::MAX)];
                let place = USED_ELEMENTS + USED_ELEMENT_BYTES * u64::from(next % size);
                memory.write_obj(element, used.unchecked_add(place))?;
                next = next.wrapping_add(1);
            }
            memory.store(next, used.unchecked_add(USED_INDEX), Ordering::Release)
        };
        put().map_err(|_| self.fault(Fault::BadRing))?;
        self.queue.set_next_used(next);
        Ok(())
    }

    /// Whether the driver waits to be interrupted for what was given back since the last call.
    pub(super) fn take_signal(&mut self, memory: &GuestMemory) -> Result<bool, DeviceError> {
        if !std::mem::take(&mut self.gave_back) || !self.queue.ready() {
            return Ok(false);
        }
        let since = std::mem::replace(&mut self.signalled, self.queue.next_used());
        self.wants_interrupt(memory, since).map_err(|_| self.fault(Fault::BadRing))
    }

    /// Whether the driver waits for one of the elements from `since` up to the next (virtio 1.3, 2.7.7.1 and 2.7.10).
    fn wants_interrupt(&self, memory: &GuestMemory, since: u16) -> Result<bool, GuestMemoryError> {
        // The driver writes what it waits for and then looks at the used index; we do it the other way round.
        fence(Ordering::SeqCst);
        let available = GuestAddress(self.queue.avail_ring());
        if !self.setup.event_index {
            let flags: u16 = memory.load(available, Ordering::Relaxed)?;
            return Ok(flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0);
        }
        let event = AVAILABLE_ELEMENTS + AVAILABLE_ELEMENT_BYTES * u64::from(self.queue.size());
        let event: u16 = memory.load(available.unchecked_add(event), Ordering::Relaxed)?;
        let next = self.queue.next_used();
        Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(since))
    }

    /// Blames this ring for `fault`.
    pub fn fault(&self, fault: Fault) -> DeviceError {
        DeviceError { device: self.device, queue: Some(self.index), fault }
    }

    /// The state to save.
    pub fn save(&self) -> RingState {
        let mut state = self.setup;
        state.next_available = self.queue.next_avail();
        state.next_used = self.queue.next_used();
        state
    }

    /// Takes a saved state. An enabled ring is checked against guest memory again, and must have no chain
    /// that was handed out: devices give all back before they are saved, so nobody would ever give it back.
    pub fn restore(&mut self, state: RingState, memory: &GuestMemory) -> Result<(), SavedStateError> {
        let refused = SavedStateError { device: self.device, what: "a ring that cannot be" };
        self.setup = state;
        if state.ready {
            self.queue = state.build(self.queue.max_size()).ok_or(refused.clone())?;
            self.signalled = state.next_used;
            if !self.queue.is_valid(memory) || self.handed_out() != 0 {
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Walks a chain to its end (virtio 1.3, 2.7.5).
    fn check<'m>(
        &self,
        memory: &'m GuestMemory,
        mut descriptors: virtio_queue::DescriptorChain<&'m GuestMemory>,
    ) -> Result<Chain<'m>, DeviceError> {
        let head = descriptors.head_index();
        if head >= self.queue.size() {
            return Err(self.fault(Fault::Head(head)));
        }
        let (readable, writable) = (Buffers::default(), Buffers::default());
        let mut chain = Chain { head, readable, writable, last_writable: None };
        let mut complete = false;
        for (before, descriptor) in descriptors.by_ref().enumerate() {
            // Empty ones are in no part, and take as long to read.
            if before >= MAX_BUFFERS {
                return Err(self.fault(Fault::LongChain(head)));
            }
            let (part, access) = if descriptor.is_write_only() {
                (&mut chain.writable, Permissions::Write)
            } else if chain.writable.is_empty() {
                (&mut chain.readable, Permissions::Read)
            } else {
                return Err(self.fault(Fault::Order(head)));
            };
            let (address, length) = (descriptor.addr(), descriptor.len() as usize);
            let outside = || self.fault(Fault::OutsideMemory { address: address.0, length: length as u64 });
            for slice in memory.get_slices(address, length, access).map_err(|_| outside())? {
                part.push(slice.map_err(|_| outside())?);
            }
            if descriptor.is_write_only() && length > 0 {
                chain.last_writable = Some(address.checked_add(length as u64 - 1).ok_or_else(outside)?);
            }
            if chain.readable.slices().len() + chain.writable.slices().len() > MAX_BUFFERS {
                return Err(self.fault(Fault::LongChain(head)));
            }
            complete = !descriptor.has_next();
        }
        // The iterator ends without a word at a loop, a bad index or a bad indirect table; the last descriptor tells.
        if complete { Ok(chain) } else { Err(self.fault(Fault::BrokenChain(head))) }
    }

    fn queue_fault(&self, error: &QueueError) -> DeviceError {
        self.fault(match error {
            QueueError::InvalidAvailRingIndex => Fault::AvailableIndex,
            _ => Fault::BadRing,
        })
    }
}

impl RingState {
    fn new(size: u16) -> Self {
        Self {
            size,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
            event_index: false,
        }
    }

    /// The queue it describes, if its size and alignments are allowed.
    fn build(&self, max_size: u16) -> Option<Queue> {
        let mut queue = Queue::new(max_size).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.available)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.used)).ok()?;
        queue.set_next_avail(self.next_available);
        queue.set_next_used(self.next_used);
        queue.set_event_idx(self.event_index);
        queue.set_ready(self.ready);
        Some(queue)
    }
}
