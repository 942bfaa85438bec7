//! What a driver may ask of the memory device, and what none can make of it.

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::virtio::testing::{MEMORY, Part, Rig};

const QUEUE: usize = 0;
const REGION: Range = Range { start: 64 << 20, len: 16 * BLOCK };

const ACK: [u16; 2] = [0, 0];
const NACK: [u16; 2] = [1, 0];
const ERROR: [u16; 2] = [3, 0];

fn rig() -> Rig<Mem> {
    let ranges = [(GuestAddress(0), MEMORY), (GuestAddress(REGION.start), REGION.len as usize)];
    let memory = GuestMemory::from_ranges(&ranges).unwrap();
    let mut rig = Rig::in_memory(memory, |_| Mem::new(REGION));
    rig.start(u64::MAX);
    rig
}

/// Asks for so many blocks, as the host does.
fn request(rig: &Rig<Mem>, blocks: u64) {
    rig.transport.with(|mem| mem.request(blocks * BLOCK));
    rig.transport.interrupt().config_changed();
}

fn bytes_of(kind: u16, address: u64, blocks: u16) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// The type and state that a request at an address is answered with.
fn ask_at(rig: &mut Rig<Mem>, kind: u16, address: u64, blocks: u16) -> [u16; 2] {
    let answer = rig.ask(QUEUE, &[Part::Out(&bytes_of(kind, address, blocks)), Part::In(RESPONSE_BYTES)]);
    [0, 8].map(|at| u16::from_le_bytes([answer[at], answer[at + 1]]))
}

/// The same of blocks from the number `first` on.
fn ask(rig: &mut Rig<Mem>, kind: u16, first: u64, blocks: u16) -> [u16; 2] {
    ask_at(rig, kind, REGION.start + first * BLOCK, blocks)
}

fn saved(rig: &Rig<Mem>) -> MemState {
    rig.transport.with(|mem| mem.save())
}

fn config(rig: &Rig<Mem>, offset: u64) -> u64 {
    let word = |offset| u64::from(rig.read(0x100 + offset));
    word(offset) | word(offset + 4) << 32
}

#[test]
fn configuration_names_region_and_sizes() {
    let mut rig = rig();
    request(&rig, 5);
    assert_eq!(ask(&mut rig, PLUG, 0, 2), ACK);
    let fields = [0, 16, 24, 32, 40, 48].map(|offset| config(&rig, offset));
    assert_eq!(fields, [BLOCK, REGION.start, REGION.len, REGION.len, 2 * BLOCK, 5 * BLOCK]);
}

#[test]
fn request_interrupts_and_is_at_most_the_region() {
    let rig = rig();
    request(&rig, 1000);
    assert_eq!(config(&rig, 48), REGION.len);
    assert_eq!(rig.transport.interrupt().causes() & 2, 2);
    rig.transport.with(|mem| mem.request(BLOCK + 1));
    assert_eq!(config(&rig, 48), BLOCK);
}

#[test]
fn nothing_is_plugged_beyond_the_request() {
    let mut rig = rig();
    assert_eq!(ask(&mut rig, PLUG, 0, 1), NACK);
    request(&rig, 3);
    assert_eq!(ask(&mut rig, PLUG, 0, 4), NACK);
    assert_eq!(ask(&mut rig, PLUG, 0, 2), ACK);
    assert_eq!(ask(&mut rig, PLUG, 8, 2), NACK);
    assert_eq!(ask(&mut rig, PLUG, 8, 1), ACK);
    assert_eq!(rig.transport.with(|mem| mem.plugged_bytes().get()), 3 * BLOCK);
}

#[test]
fn fallen_request_takes_nothing_and_grants_nothing() {
    let mut rig = rig();
    request(&rig, 4);
    assert_eq!(ask(&mut rig, PLUG, 0, 4), ACK);
    request(&rig, 1);
    assert_eq!(config(&rig, 40), 4 * BLOCK);
    assert_eq!(ask(&mut rig, PLUG, 8, 1), NACK);
    assert_eq!(ask(&mut rig, UNPLUG, 1, 3), ACK);
    assert_eq!(config(&rig, 40), BLOCK);
}

#[test]
fn state_of_blocks_is_told() {
    let mut rig = rig();
    request(&rig, 2);
    assert_eq!(ask(&mut rig, PLUG, 1, 2), ACK);
    assert_eq!(ask(&mut rig, STATE, 1, 2), [0, 0]);
    assert_eq!(ask(&mut rig, STATE, 3, 13), [0, 1]);
    assert_eq!(ask(&mut rig, STATE, 0, 2), [0, 2]);
}

#[test]
fn unplugged_memory_comes_back_empty_and_its_neighbours_stay() {
    let mut rig = rig();
    request(&rig, 3);
    assert_eq!(ask(&mut rig, PLUG, 0, 3), ACK);
    for block in 0..3 {
        rig.memory.write_obj(7_u8, GuestAddress(REGION.start + (block + 1) * BLOCK - 1)).unwrap();
    }
    assert_eq!(ask(&mut rig, UNPLUG, 1, 1), ACK);
    let last = [0, 1, 2].map(|block| rig.bytes(REGION.start + (block + 1) * BLOCK - 1, 1)[0]);
    assert_eq!(last, [7, 0, 7]);
}

#[test]
fn all_is_unplugged_at_once() {
    let mut rig = rig();
    request(&rig, 3);
    assert_eq!(ask(&mut rig, PLUG, 0, 1), ACK);
    assert_eq!(ask(&mut rig, PLUG, 5, 2), ACK);
    rig.memory.write_obj(7_u8, GuestAddress(REGION.start + 6 * BLOCK)).unwrap();
    assert_eq!(ask_at(&mut rig, UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(saved(&rig).plugged, []);
    assert_eq!(rig.bytes(REGION.start + 6 * BLOCK, 1), [0]);
}

#[test]
fn what_no_driver_may_ask_is_an_error_and_changes_nothing() {
    let mut rig = rig();
    request(&rig, 16);
    assert_eq!(ask(&mut rig, PLUG, 4, 2), ACK);
    let before = saved(&rig);
    let start = REGION.start;
    for (kind, address, blocks) in [
        (PLUG, start, 0),
        (PLUG, start + 4096, 1),
        (PLUG, start - BLOCK, 1),
        (PLUG, start + REGION.len, 1),
        (PLUG, start, 17),
        (PLUG, u64::MAX - BLOCK + 1, u16::MAX),
        (PLUG, start + 5 * BLOCK, 2),
        (UNPLUG, start + 3 * BLOCK, 2),
        (UNPLUG, start, 1),
        (STATE, 0, 1),
        (STATE, start, 0),
        (4, start, 1),
        (u16::MAX, start, 1),
    ] {
        assert_eq!(ask_at(&mut rig, kind, address, blocks), ERROR, "{kind} {address:#x} {blocks}");
    }
    assert_eq!(saved(&rig), before);
}

#[test]
fn request_or_response_without_room_ends_the_vm() {
    for (request, response) in [(&[0; 23][..], RESPONSE_BYTES), (&[0; 24][..], RESPONSE_BYTES - 1)] {
        let mut rig = rig();
        rig.offer(QUEUE, &[Part::Out(request), Part::In(response)]);
        rig.kick(QUEUE);
        assert!(matches!(rig.failure().fault, Fault::Short { .. }));
    }
}

#[test]
fn descriptor_in_unplugged_memory_is_no_fault() {
    let mut rig = rig();
    let request = bytes_of(STATE, REGION.start, 1);
    rig.memory.write_slice(&request, GuestAddress(0x50_0000)).unwrap();
    rig.describe(QUEUE, 0, 0x50_0000, REQUEST_BYTES as u32, 1, 1);
    rig.describe(QUEUE, 1, REGION.start + BLOCK, RESPONSE_BYTES as u32, 2, 0);
    rig.publish(QUEUE, 0);
    rig.kick(QUEUE);
    assert_eq!(rig.used(QUEUE), Some((0, RESPONSE_BYTES as u32)));
}

#[test]
fn reset_leaves_what_is_plugged() {
    let mut rig = rig();
    request(&rig, 2);
    assert_eq!(ask(&mut rig, PLUG, 0, 2), ACK);
    rig.reset();
    rig.start(u64::MAX);
    assert_eq!(config(&rig, 40), 2 * BLOCK);
}

#[test]
fn restored_device_goes_on() {
    let mut rig = rig();
    request(&rig, 3);
    assert_eq!(ask(&mut rig, PLUG, 2, 2), ACK);
    let state = rig.transport.save();
    let json = serde_json::to_string(&state.device).unwrap();
    let device: MemState = serde_json::from_str(&json).unwrap();
    assert_eq!(device.plugged, [BlockRange { first: 2, count: 2 }]);

    let mut rig = rig.restored(&state, |_| Mem::restore(&device).unwrap()).unwrap();
    assert_eq!(saved(&rig), device);
    assert_eq!(rig.transport.with(|mem| mem.plugged_bytes().get()), 2 * BLOCK);
    assert_eq!(ask(&mut rig, PLUG, 0, 2), NACK);
    assert_eq!(ask(&mut rig, PLUG, 0, 1), ACK);
}

#[test]
fn impossible_state_is_refused() {
    let good = || MemState {
        address: REGION.start,
        region_bytes: REGION.len,
        requested_bytes: 0,
        plugged: vec![BlockRange { first: 1, count: 2 }],
    };
    assert!(Mem::restore(&good()).is_ok());
    let range = |first, count| BlockRange { first, count };
    for bad in [
        MemState { address: REGION.start + 4096, ..good() },
        MemState { address: 0_u64.wrapping_sub(BLOCK), ..good() },
        MemState { region_bytes: REGION.len - 1, ..good() },
        MemState { region_bytes: (u64::from(u32::MAX) + 1) * BLOCK, ..good() },
        MemState { requested_bytes: REGION.len + BLOCK, ..good() },
        MemState { requested_bytes: 1, ..good() },
        MemState { plugged: vec![range(0, 0)], ..good() },
        MemState { plugged: vec![range(15, 2)], ..good() },
        MemState { plugged: vec![range(u32::MAX, u32::MAX)], ..good() },
        MemState { plugged: vec![range(0, 2), range(1, 2)], ..good() },
        MemState { plugged: vec![range(4, 1), range(1, 1)], ..good() },
    ] {
        assert!(Mem::restore(&bad).is_err(), "{bad:?}");
    }
}

/// One thing that happens to the device.
#[derive(Debug, Clone)]
enum Step {
    Host(u64),
    Guest { kind: u16, address: u64, blocks: u16 },
    Raw(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let near = (0_u64..18).prop_map(|block| REGION.start - BLOCK + block * BLOCK);
    let address = prop_oneof![8 => near, 1 => any::<u64>()];
    let blocks = prop_oneof![8 => 0_u16..18, 1 => any::<u16>()];
    let guest = (0_u16..5, address, blocks);
    let step = prop_oneof![
        2 => (0_u64..20).prop_map(Step::Host),
        8 => guest.prop_map(|(kind, address, blocks)| Step::Guest { kind, address, blocks }),
        1 => prop::collection::vec(any::<u8>(), REQUEST_BYTES).prop_map(Step::Raw),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked: nothing is plugged beyond the request, all sizes agree, what is unplugged is empty, memory beside
    /// the region stays, and the state can be restored.
    #[test]
    fn hostile_guest_keeps_the_invariants(steps in steps()) {
        let mut rig = rig();
        rig.memory.write_obj(7_u8, GuestAddress(MEMORY as u64 - 1)).unwrap();
        let (mut requested, mut plugged) = (0, 0);
        for step in steps {
            let bytes = match step {
                Step::Host(blocks) => {
                    request(&rig, blocks);
                    requested = blocks.min(16);
                    continue;
                }
                Step::Guest { kind, address, blocks } => bytes_of(kind, address, blocks).to_vec(),
                Step::Raw(bytes) => bytes,
            };
            rig.ask(QUEUE, &[Part::Out(&bytes), Part::In(RESPONSE_BYTES)]);
            let state = saved(&rig);
            let now: u64 = state.plugged.iter().map(|range| u64::from(range.count)).sum();
            prop_assert!(now <= plugged.max(requested), "{} > {} and {}", now, plugged, requested);
            plugged = now;
            prop_assert_eq!(config(&rig, 40), plugged * BLOCK);
            prop_assert_eq!(rig.transport.with(|mem| mem.plugged_bytes().get()), plugged * BLOCK);
            prop_assert_eq!(Mem::restore(&state).unwrap().save(), state.clone());
            for block in 0..16 {
                let place = GuestAddress(REGION.start + block * BLOCK);
                let taken = |range: &BlockRange| (range.first..range.first + range.count).contains(&(block as u32));
                if state.plugged.iter().any(taken) {
                    rig.memory.write_obj(7_u8, place).unwrap();
                } else {
                    prop_assert_eq!(rig.memory.read_obj::<u8>(place).unwrap(), 0);
                }
            }
        }
        prop_assert_eq!(rig.bytes(MEMORY as u64 - 1, 1), [7]);
        prop_assert!(rig.failures.lock().unwrap().is_empty());
    }
}
