//! Any descriptors, available entries and bytes behind them, on the ring of a disk with three extents. Its
//! worker may sleep for as long as the driver offers its chains, also those again that were not given back.

#![no_main]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use isopod_vmm::virtio::block::{Disk, Extents, Worker};
use isopod_vmm::virtio::testing::Rig;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// Where the input's bytes lie in guest memory; most descriptors point there.
const DATA: u64 = 0x20_0000;
/// Entries of the disk's ring.
const ENTRIES: usize = 256;
/// Where a request for the worker lies, and the first of its three descriptors: few inputs have one of their
/// own.
const DISCARD: u64 = 0x30_0000;
const DISCARD_HEAD: u16 = 253;

#[derive(Debug, Arbitrary)]
struct Input {
    descriptors: Vec<(u64, u32, u8, u8)>,
    heads: Vec<u8>,
    discards: Option<u8>,
    asleep: bool,
    available: Option<u16>,
    data: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let extents = Arc::new(Extents::new());
    for read_only in [true, false, false] {
        let file: OwnedFd = tempfile::tempfile().expect("a file").into();
        extents.attach(file, 1 << 20, read_only).expect("room for it");
    }
    let worker = Arc::new(Worker::new().expect("an eventfd"));
    let mut rig =
        Rig::running(|poller| Disk::new(extents.clone(), worker.clone(), &poller).expect("an epoll"));
    let awake = (!input.asleep).then(|| serve(&worker, &extents));
    let bytes = &input.data[..input.data.len().min(1 << 16)];
    for (place, chunk) in (0..).zip(bytes.chunks(16)) {
        let mut entry = [0; 16];
        entry[..chunk.len()].copy_from_slice(chunk);
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let address = u64::from(word(0)) | u64::from(word(4)) << 32;
        rig.describe_at(DATA + 16 * place, address, word(8), word(12) as u16, (word(12) >> 16) as u16);
    }
    for (index, (address, length, flags, next)) in (0..256).zip(&input.descriptors) {
        let (address, length) = match address % 4 {
            0 => (*address, *length),
            _ => (DATA + address % 0x1_0000, length % 0x2000),
        };
        rig.describe(0, index, address, length, u16::from(*flags), u16::from(*next));
    }
    put_discard(&rig);
    // More of them than the ring has entries, now and then.
    let discards = 3 * usize::from(input.discards.unwrap_or(0));
    let heads = std::iter::repeat_n(DISCARD_HEAD, discards).chain(input.heads.iter().copied().map(u16::from));
    for (offered, head) in (1..).zip(heads) {
        rig.publish(0, head);
        if offered % 64 == 0 {
            rig.kick(0);
            assert!(worker.waiting() <= ENTRIES);
        }
    }
    if let Some(index) = input.available {
        rig.set_available(0, index);
    }
    rig.kick(0);
    assert!(worker.waiting() <= ENTRIES);
    let serving = awake.unwrap_or_else(|| serve(&worker, &extents));
    rig.transport.save();
    assert!(rig.failures.lock().expect("no panic").len() <= 1);
    drop(rig);
    serving.join().expect("the worker does not panic");
});

/// The worker, on its thread.
fn serve(worker: &Arc<Worker>, extents: &Arc<Extents>) -> JoinHandle<()> {
    let (worker, extents) = (worker.clone(), extents.clone());
    std::thread::spawn(move || worker.serve(&extents))
}

/// A request to discard the first sector of the second extent.
fn put_discard(rig: &Rig<Disk>) {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    // Its header and its range, 16 bytes each.
    rig.describe_at(DISCARD, 11, 0, 0, 0);
    rig.describe_at(DISCARD + 16, 2048, 1, 0, 0);
    rig.describe(0, DISCARD_HEAD, DISCARD, 16, NEXT, DISCARD_HEAD + 1);
    rig.describe(0, DISCARD_HEAD + 1, DISCARD + 16, 16, NEXT, DISCARD_HEAD + 2);
    rig.describe(0, DISCARD_HEAD + 2, DISCARD + 32, 1, WRITE, 0);
}
