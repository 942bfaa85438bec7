//! A guest that does anything to a device: registers, rings and buffers of any kind, resets, and a save and restore of the VM in
//! between. Mostly it does what a driver would, or nothing of the device would be reached.
//!
//! Used by the targets. What must hold: no panic, at most one failure, and a loop that comes to rest or at least gives others
//! their turn.

use vm_memory::{Bytes, GuestAddress};

use super::source::Source;
use crate::{
    bus::BusDevice,
    memory::GuestMemory,
    virtio::{
        Poller, VirtioDevice,
        mmio::SavedDevice,
        testing::{Part, Rig},
    },
};

/// Where most buffers and indirect tables lie.
const DATA: u64 = 0x20_0000;
/// Things that happen in one run.
const STEPS: usize = 300;
/// Turns of the event loop after each. A driver whose rings overlap can have its device work for ever.
const TURNS: usize = 40;

/// A device and its surroundings in a run.
pub struct Setting<M, H> {
    /// Guest memory.
    pub memory: GuestMemory,
    /// Makes the device, anew or from its saved state; none where the state is refused.
    pub make: M,
    /// What happens beside that, now and then: what the host does to the device, and what only a driver of
    /// its kind does.
    pub host: H,
}

/// Has a guest do what `source` says.
pub fn play<D, M, H>(source: &mut Source<'_>, setting: Setting<M, H>)
where
    D: VirtioDevice,
    M: Fn(Poller, Option<&D::State>) -> Option<D>,
    H: FnMut(&mut Rig<D>, &mut Source<'_>),
{
    let Setting { memory, make, mut host } = setting;
    let new = |poller| make(poller, None).expect("a device without a state is always made");
    let mut rig = Rig::in_memory(memory.clone(), new);
    if !source.u8().is_multiple_of(4) {
        rig.start(u64::from(source.u32()) << 32 | u64::from(source.u32()) | 1 << 32);
    }
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        match source.u8() % 16 {
            0 => host(&mut rig, source),
            1 => match save_and_restore(rig, &make, source) {
                Some(restored) => rig = restored,
                None => return,
            },
            2 => {
                rig.reset();
                rig.run_for(TURNS);
                rig.start(u64::from(source.u32()) | 1 << 32);
            }
            _ => step(&mut rig, source),
        }
        rig.run_for(TURNS);
        for queue in 0..D::QUEUE_SIZES.len() {
            while rig.used(queue).is_some() {}
        }
        assert!(rig.failures.lock().expect("no panic").len() <= 1);
    }
}

/// What any driver can do.
fn step<D: VirtioDevice>(rig: &mut Rig<D>, source: &mut Source<'_>) {
    let queue = source.below(D::QUEUE_SIZES.len());
    match source.u8() % 12 {
        0 => access(rig, source),
        1 => {
            let (index, flags, next) = (source.u16() % 256, source.u16() % 8, source.u16() % 260);
            let (address, length) = place(source);
            rig.describe(queue, index, address, length, flags, next);
        }
        2 => {
            let (slot, flags, next) = (u64::from(source.u8()), source.u16() % 4, source.u16() % 260);
            let (address, length) = place(source);
            rig.describe_at(DATA + 16 * slot, address, length, flags, next);
        }
        3 => rig.publish(queue, source.u16() % 260),
        4 => rig.set_available(queue, source.u16()),
        5 => {
            let (at, bytes) = (DATA + u64::from(source.u16()), source.bytes(512));
            rig.memory.write_slice(bytes, GuestAddress(at)).expect("inside memory");
        }
        _ => offer(rig, queue, source),
    }
    rig.write(0x50, queue as u32);
}

/// A chain as a driver makes it, of parts that may be of any size.
fn offer<D: VirtioDevice>(rig: &mut Rig<D>, queue: usize, source: &mut Source<'_>) {
    let mut parts = Vec::new();
    for _ in 0..source.u8() % 4 {
        parts.push(Part::Out(source.bytes(300)));
    }
    for _ in 0..source.u8() % 4 {
        parts.push(Part::In(usize::from(source.u16())));
    }
    if !parts.is_empty() {
        rig.offer(queue, &parts);
    }
}

/// One access to registers or configuration: mostly a word at a multiple of its size.
fn access<D: VirtioDevice>(rig: &Rig<D>, source: &mut Source<'_>) {
    let how = source.u8();
    let (mut offset, mut width) = (u64::from(source.u16() % 0x120), 4);
    if how & 2 == 0 {
        offset &= !3;
    } else {
        width = source.below(9);
    }
    let mut data = source.u64().to_le_bytes();
    if how & 1 == 0 {
        rig.transport.read(offset, &mut data[..width]);
    } else {
        rig.transport.write(offset, &data[..width]);
    }
}

/// A buffer: mostly one that is guest memory.
fn place(source: &mut Source<'_>) -> (u64, u32) {
    match source.u8() % 8 {
        0 => (source.u64(), source.u32()),
        1 => (source.u64(), source.u32() % 64),
        _ => (DATA + u64::from(source.u16()), source.u32() % 0x3000),
    }
}

/// Saves the device, changes some bytes of what was saved, and builds it anew. None where that is refused.
fn save_and_restore<D, M>(rig: Rig<D>, make: &M, source: &mut Source<'_>) -> Option<Rig<D>>
where
    D: VirtioDevice,
    M: Fn(Poller, Option<&D::State>) -> Option<D>,
{
    let mut bytes = postcard::to_allocvec(&rig.transport.save()).expect("a state can be encoded");
    for _ in 0..source.u8() % 4 {
        let at = source.below(bytes.len());
        bytes[at] = source.u8();
    }
    let saved: SavedDevice<D::State> = postcard::from_bytes(&bytes).ok()?;
    let mut events = crate::virtio::EventLoop::new().ok()?;
    make(events.poller(), Some(&saved.device))?;
    rig.restored(&saved, |poller| {
        make(poller, Some(&saved.device)).expect("it was made just now of the same state")
    })
    .ok()
}
