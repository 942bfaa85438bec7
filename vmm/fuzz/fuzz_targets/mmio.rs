//! Any register accesses, from a device that has not started or one that runs.

#![no_main]

use isopod_vmm::bus::BusDevice;
use isopod_vmm::virtio::rng::Rng;
use isopod_vmm::virtio::testing::Rig;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Access {
    write: bool,
    offset: u16,
    data: [u8; 8],
    width: u8,
}

fuzz_target!(|input: (bool, Vec<Access>)| {
    let (running, accesses) = input;
    let mut rig = Rig::cold(|_| Rng::new());
    if running {
        rig.start(u64::MAX);
    }
    for mut access in accesses {
        // Mostly what a driver would do: a word at a multiple of its size.
        let (offset, width) = match access.width {
            width @ 0..=8 => (access.offset, usize::from(width)),
            _ => (access.offset & 0x1fc, 4),
        };
        let data = &mut access.data[..width];
        if access.write {
            rig.transport.write(offset.into(), data);
        } else {
            rig.transport.read(offset.into(), data);
        }
        rig.run();
    }
    assert!(rig.failures.lock().expect("no panic").len() <= 1);
});
