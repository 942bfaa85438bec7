//! The transport's registers, as a driver and as a hostile guest would use them.

use proptest::prelude::*;

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Part, Rig};
use crate::virtio::{DeviceError, Fault};

const STATUS: u64 = VIRTIO_MMIO_STATUS as u64;
const READY: u64 = VIRTIO_MMIO_QUEUE_READY as u64;

fn cold() -> Rig<Rng> {
    Rig::cold(|_| Rng::new())
}

fn running() -> Rig<Rng> {
    Rig::running(|_| Rng::new())
}

/// Up to FEATURES_OK, with these features.
fn negotiated(features: u64) -> Rig<Rng> {
    let rig = cold();
    rig.write(STATUS, 1);
    rig.write(STATUS, 3);
    for page in 0..2 {
        rig.write(0x24, page);
        rig.write(0x20, half(features, page));
    }
    rig.write(STATUS, 11);
    rig
}

/// Sets up queue 0 but for its enabling.
fn set_up(rig: &Rig<Rng>, size: u32, descriptors: u32, available: u32, used: u32) {
    rig.write(0x38, size);
    rig.write(0x80, descriptors);
    rig.write(0x90, available);
    rig.write(0xa0, used);
}

#[test]
fn device_introduces_itself() {
    let rig = cold();
    let read = [0x000, 0x004, 0x008, 0x00c, 0x034, 0x0fc, 0x0b0].map(|offset| rig.read(offset));
    assert_eq!(read, [0x7472_6976, 2, 4, 0x504f_5349, 16, 0, u32::MAX]);
    rig.write(0x14, 1);
    assert_eq!(rig.read(0x10), 1);
    rig.write(0x14, 2);
    assert_eq!(rig.read(0x10), 0);
    rig.write(0x30, 1);
    assert_eq!((rig.read(0x34), rig.read(READY)), (0, 0));
}

#[test]
fn status_takes_one_step_at_a_time() {
    let rig = cold();
    for (written, expected) in [(2, 0), (8, 0), (4, 0), (1, 1), (9, 1), (3, 3), (1, 3), (7, 3), (64 | 3, 3)] {
        rig.write(STATUS, written);
        assert_eq!(rig.read(STATUS), expected, "after {written}");
    }
    rig.write(STATUS, 0);
    assert_eq!(rig.read(STATUS), 0);
}

#[test]
fn features_that_are_not_offered_are_refused() {
    assert_eq!(negotiated(features::VERSION_1).read(STATUS), 11);
    assert_eq!(negotiated(features::TRANSPORT).read(STATUS), 11);
    assert_eq!(negotiated(features::VERSION_1 | 1).read(STATUS), 3);
    assert_eq!(negotiated(features::INDIRECT_DESC).read(STATUS), 3, "without VERSION_1");
    assert_eq!(negotiated(0).read(STATUS), 3);
}

#[test]
fn rings_cannot_be_set_up_before_features_or_after_start() {
    let rig = cold();
    set_up(&rig, 8, 0x1000, 0x2000, 0x3000);
    rig.write(READY, 1);
    assert_eq!(rig.read(READY), 0);

    let rig = running();
    set_up(&rig, 8, 0xffff_fff0, 0xffff_fff0, 0xffff_fff0);
    rig.write(READY, 1);
    let saved = rig.transport.save();
    assert_eq!((saved.rings[0].size, saved.rings[0].descriptors), (16, 0));
}

#[test]
fn ring_that_cannot_be_ends_the_vm() {
    let good = (8, 0x1000, 0x2000, 0x3000);
    for (size, descriptors, available, used) in [
        (0, 0x1000, 0x2000, 0x3000),
        (7, 0x1000, 0x2000, 0x3000),
        (32, 0x1000, 0x2000, 0x3000),
        (0x1_0008, 0x1000, 0x2000, 0x3000),
        (8, 0x1008, 0x2000, 0x3000),
        (8, 0x1000, 0x2001, 0x3000),
        (8, 0x1000, 0x2000, 0x3002),
        (8, 0x7f_fff0, 0x2000, 0x3000),
        (8, 0x1000, 0x7f_fffe, 0x3000),
        (8, 0x1000, 0x2000, 0x7f_fffc),
        (8, 0xffff_fff0, 0x2000, 0x3000),
    ] {
        let rig = negotiated(features::TRANSPORT);
        set_up(&rig, size, descriptors, available, used);
        rig.write(READY, 1);
        let expected = DeviceError { device: "rng", queue: Some(0), fault: Fault::BadRing };
        assert_eq!(rig.failure(), expected, "{size} {descriptors:#x} {available:#x} {used:#x}");
        assert_eq!(rig.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
        rig.write(STATUS, 0);
        assert_eq!(rig.read(STATUS) & NEEDS_RESET, NEEDS_RESET, "there is no way back");
    }
    let rig = negotiated(features::TRANSPORT);
    set_up(&rig, good.0, good.1, good.2, good.3);
    rig.write(READY, 1);
    assert_eq!(rig.read(READY), 1);
    assert!(rig.failures.lock().unwrap().is_empty());
}

#[test]
fn kick_before_the_driver_is_ready_is_ignored() {
    let mut rig = negotiated(features::VERSION_1);
    set_up(&rig, 16, 0, 0x8000, 0xa000);
    rig.write(READY, 1);
    rig.offer(0, &[Part::In(8)]);
    rig.kick(0);
    assert_eq!(rig.used(0), None);
    rig.write(STATUS, 15);
    rig.run();
    assert_eq!(rig.used(0), Some((0, 8)));
}

#[test]
fn interrupt_is_raised_and_acknowledged() {
    let mut rig = running();
    let line = rig.transport.interrupt().event().try_clone().unwrap();
    rig.ask(0, &[Part::In(8)]);
    assert_eq!((rig.read(0x60), line.read().unwrap()), (1, 1));
    rig.transport.interrupt().config_changed();
    assert_eq!((rig.read(0x60), rig.read(0xfc)), (3, 1));
    rig.write(0x64, 1);
    assert_eq!(rig.read(0x60), 2);
}

#[test]
fn one_interrupt_serves_a_batch() {
    let mut rig = running();
    let line = rig.transport.interrupt().event().try_clone().unwrap();
    for _ in 0..10 {
        rig.offer(0, &[Part::In(8)]);
    }
    rig.kick(0);
    assert_eq!(line.read().unwrap(), 1);
    assert_eq!(std::iter::from_fn(|| rig.used(0)).count(), 10);
}

#[test]
fn nothing_given_back_raises_no_interrupt() {
    let mut rig = cold();
    rig.start(features::VERSION_1);
    let line = rig.transport.interrupt().event().try_clone().unwrap();
    rig.kick(0);
    assert!(line.read().is_err());
    rig.ask(0, &[Part::In(8)]);
    assert_eq!(line.read().unwrap(), 1);
}

#[test]
fn device_that_was_reset_starts_anew() {
    let mut rig = running();
    rig.ask(0, &[Part::In(8)]);
    rig.reset();
    assert_eq!((rig.read(STATUS), rig.read(READY)), (0, 0));
    rig.run();
    rig.start(u64::MAX);
    assert_eq!(rig.ask(0, &[Part::In(8)]).len(), 8);
}

#[test]
fn odd_accesses_read_zero_and_change_nothing() {
    let rig = running();
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0x70, 1), (0x71, 4), (0xffe, 4)] {
        let mut data = vec![0xaa; width];
        rig.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; width], "{offset:#x}");
        rig.transport.write(offset, &vec![0; width]);
    }
    assert_eq!(rig.read(STATUS), 15);
}

#[test]
fn saved_device_goes_on_where_it_was() {
    let mut rig = running();
    for _ in 0..20 {
        rig.ask(0, &[Part::In(8)]);
    }
    // Offered, but the device has not seen it when it is saved.
    let waiting = rig.offer(0, &[Part::In(8)]);
    let saved = rig.transport.save();
    let text = serde_json::to_string(&saved).unwrap();
    let saved: SavedDevice<_> = serde_json::from_str(&text).unwrap();

    let mut rig = rig.restored(&saved, |_| Rng::new()).unwrap();
    assert_eq!(rig.transport.save(), saved);
    rig.run();
    assert_eq!(rig.used(0), Some((waiting.head, 8)));
    assert_eq!((rig.read(STATUS), rig.read(0x60)), (15, 1));
    assert_eq!(rig.ask(0, &[Part::In(8)]).len(), 8);
}

#[test]
fn impossible_saved_state_is_refused() {
    let changes: [fn(&mut SavedDevice<_>); 6] = [
        |saved| saved.rings.clear(),
        |saved| saved.rings[0].size = 3,
        |saved| saved.rings[0].descriptors = !0xf,
        |saved| saved.rings[0].used = 1,
        |saved| saved.rings[0].next_available += 1,
        |saved| saved.registers.driver_features |= 1 << 50,
    ];
    for change in changes {
        let rig = running();
        let mut saved = rig.transport.save();
        change(&mut saved);
        assert!(matches!(rig.restored(&saved, |_| Rng::new()), Err(DeviceRestoreError::State(_))));
    }
}

proptest! {
    /// Any accesses in any order: no panic, at most one failure, and the loop comes to rest.
    #[test]
    fn arbitrary_register_accesses_never_panic(
        accesses in prop::collection::vec(
            (
                any::<bool>(),
                prop_oneof![4 => (0u64..0x44).prop_map(|word| word * 4), 1 => any::<u64>()],
                prop_oneof![0u32..20, any::<u32>()],
                prop_oneof![4 => Just(4usize), 1 => 0usize..9],
            ),
            0..200,
        ),
        start in any::<bool>(),
    ) {
        let mut rig = if start { running() } else { cold() };
        for (write, offset, value, width) in accesses {
            let mut data = u64::from(value).to_le_bytes()[..width].to_vec();
            if write {
                rig.transport.write(offset, &data);
            } else {
                rig.transport.read(offset, &mut data);
            }
            rig.run();
        }
        prop_assert!(rig.failures.lock().unwrap().len() <= 1);
    }

    /// Any descriptors and available entries: each chain is given back or the VM ends, and nothing panics.
    #[test]
    fn arbitrary_rings_never_panic(
        descriptors in prop::collection::vec(
            (
                prop_oneof![Just(0u64), 0x1f_ff00u64..0x20_0100, any::<u64>()],
                prop_oneof![0u32..100, any::<u32>()],
                0u16..8,
                0u16..18,
            ),
            16,
        ),
        heads in prop::collection::vec(0u16..18, 0..20),
        index in prop_oneof![Just(None), any::<u16>().prop_map(Some)],
    ) {
        let mut rig = running();
        for (place, (address, length, flags, next)) in (0..).zip(descriptors) {
            rig.describe(0, place, address, length, flags, next);
            // The same again as an indirect table.
            rig.describe_at(0x20_0000 + 16 * u64::from(place), address, length, flags & !4, next);
        }
        for head in heads {
            rig.publish(0, head);
        }
        if let Some(index) = index {
            rig.set_available(0, index);
        }
        rig.kick(0);
        prop_assert!(rig.failures.lock().unwrap().len() <= 1);
    }
}
