//! Chains that are whole, and all that a hostile driver can make of a ring.

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{INDIRECT, NEXT, Part, Rig, WRITE};
use crate::virtio::{Driver, VirtioDevice};

fn rig() -> Rig<Rng> {
    Rig::running(|_| Rng::new())
}

#[test]
fn chain_of_several_buffers_is_served_whole() {
    let mut rig = rig();
    let bytes = rig.ask(0, &[Part::In(10), Part::In(0), Part::In(30)]);
    assert_eq!(bytes.len(), 40);
    assert_ne!(bytes, [0; 40]);
}

#[test]
fn indirect_table_is_followed() {
    let mut rig = rig();
    rig.describe_at(0x20_0000, 0x30_0000, 8, WRITE | NEXT, 1);
    rig.describe_at(0x20_0010, 0x30_0008, 8, WRITE, 0);
    rig.describe(0, 0, 0x20_0000, 32, INDIRECT, 0);
    rig.publish(0, 0);
    rig.kick(0);
    assert_eq!(rig.used(0), Some((0, 16)));
}

#[test]
fn looping_chain_is_refused() {
    let mut rig = rig();
    rig.describe(0, 0, 0x30_0000, 8, WRITE | NEXT, 0);
    rig.publish(0, 0);
    rig.kick(0);
    assert_eq!(rig.failure().fault, Fault::BrokenChain(0));
    assert_eq!(rig.used(0), None);
}

#[test]
fn nested_indirect_table_is_refused() {
    let mut rig = rig();
    rig.describe_at(0x20_0000, 0x20_0000, 16, INDIRECT, 0);
    rig.describe(0, 0, 0x20_0000, 16, INDIRECT, 0);
    rig.publish(0, 0);
    rig.kick(0);
    assert_eq!(rig.failure().fault, Fault::BrokenChain(0));
}

#[test]
fn buffer_outside_memory_is_refused() {
    for (address, length) in [(u64::MAX, 1), (0x7f_ffff, 2), (1 << 40, 16), (0, u32::MAX)] {
        let mut rig = rig();
        rig.describe(0, 0, address, length, WRITE, 0);
        rig.publish(0, 0);
        rig.kick(0);
        let outside = Fault::OutsideMemory { address, length: length.into() };
        assert_eq!(rig.failure(), DeviceError { device: "rng", queue: Some(0), fault: outside });
    }
}

#[test]
fn readable_after_writable_is_refused() {
    let mut rig = rig();
    rig.offer(0, &[Part::In(8), Part::Out(b"late")]);
    rig.kick(0);
    assert_eq!(rig.failure().fault, Fault::Order(0));
}

#[test]
fn head_outside_the_table_is_refused() {
    let mut rig = rig();
    rig.publish(0, 16);
    rig.kick(0);
    assert_eq!(rig.failure().fault, Fault::Head(16));
}

#[test]
fn available_index_that_jumps_is_refused() {
    let mut rig = rig();
    rig.set_available(0, 17);
    rig.kick(0);
    assert_eq!(rig.failure().fault, Fault::AvailableIndex);
}

#[test]
fn chain_of_too_many_buffers_is_refused() {
    let mut rig = rig();
    for index in 0..1025 {
        let next = if index < 1024 { NEXT } else { 0 };
        rig.describe_at(0x20_0000 + 16 * index, 0x30_0000, 1, WRITE | next, index as u16 + 1);
    }
    rig.describe(0, 0, 0x20_0000, 16 * 1025, INDIRECT, 0);
    rig.publish(0, 0);
    rig.kick(0);
    assert_eq!(rig.failure().fault, Fault::LongChain(0));
}

#[test]
fn chain_of_too_many_empty_buffers_is_refused() {
    for (count, refused) in [(MAX_BUFFERS as u64, false), (MAX_BUFFERS as u64 + 1, true)] {
        let mut rig = rig();
        for index in 0..count {
            let next = if index + 1 < count { NEXT } else { 0 };
            rig.describe_at(0x20_0000 + 16 * index, 0x30_0000, 0, WRITE | next, index as u16 + 1);
        }
        rig.describe(0, 0, 0x20_0000, 16 * count as u32, INDIRECT, 0);
        rig.publish(0, 0);
        rig.kick(0);
        assert_eq!(rig.used(0).is_none(), refused);
        if refused {
            assert_eq!(rig.failure().fault, Fault::LongChain(0));
        }
    }
}

/// Hands chains out as a device does that keeps them.
fn keeps(count: usize) -> (Rig<Keeper>, usize) {
    let mut rig = Rig::running(|_| Keeper::default());
    rig.describe(0, 3, 0x30_0000, 8, WRITE, 0);
    (0..count).for_each(|_| rig.publish(0, 3));
    rig.kick(0);
    let kept = rig.transport.with(|keeper| keeper.kept.len());
    (rig, kept)
}

#[test]
fn chain_that_is_offered_again_while_all_are_with_the_device_is_refused() {
    let (mut rig, kept) = keeps(8);
    assert_eq!((kept, rig.failures.lock().unwrap().len()), (8, 0));
    rig.publish(0, 3);
    rig.kick(0);
    assert_eq!(rig.transport.with(|keeper| keeper.kept.len()), 8);
    assert_eq!(rig.failure().fault, Fault::OfferedTwice);
}

#[test]
fn chains_that_came_back_and_those_before_a_reset_do_not_count() {
    let (mut rig, _) = keeps(8);
    rig.transport.with(|keeper| keeper.give_back = 5);
    rig.kick(0);
    (0..5).for_each(|_| rig.publish(0, 3));
    rig.kick(0);
    assert_eq!(rig.transport.with(|keeper| keeper.kept.len()), 8);
    rig.reset();
    rig.run();
    rig.start(u64::MAX);
    rig.describe(0, 3, 0x30_0000, 8, WRITE, 0);
    (0..8).for_each(|_| rig.publish(0, 3));
    rig.kick(0);
    assert_eq!(rig.transport.with(|keeper| keeper.kept.len()), 8);
    assert!(rig.failures.lock().unwrap().is_empty());
}

/// A device that keeps its chains, as one does that works on them elsewhere.
#[derive(Default)]
struct Keeper {
    kept: Vec<u16>,
    give_back: usize,
}

impl VirtioDevice for Keeper {
    type State = ();
    const NAME: &'static str = "keeper";
    const ID: u32 = 77;
    const QUEUE_SIZES: &'static [u16] = &[8];

    fn features(&self) -> u64 {
        0
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[queue];
        for _ in 0..std::mem::take(&mut self.give_back) {
            ring.give_back(driver.memory, self.kept.pop().unwrap(), 0)?;
        }
        while let Some(chain) = ring.pop(driver.memory)? {
            self.kept.push(chain.head);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.kept.clear();
    }

    fn save(&self) {}
}

#[test]
fn broken_device_stays_silent() {
    let mut rig = rig();
    rig.publish(0, 99);
    rig.kick(0);
    rig.offer(0, &[Part::In(8)]);
    rig.kick(0);
    assert_eq!(rig.used(0), None);
    assert_eq!(rig.failure().fault, Fault::Head(99));
}
