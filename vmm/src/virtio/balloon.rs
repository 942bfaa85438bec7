//! The balloon (virtio 1.3, section 5.5): pages that the guest does not use go back to the host.
//!
//! Two ways lead there. Free page reporting: the guest's kernel offers large free ranges by itself, and may use them
//! again whenever it likes. Inflation: the host sets a target and the guest gives up that many pages until the target
//! falls or it runs out of memory, when it takes them back by itself. Either way the page is dropped here and comes back
//! empty when it is touched. Addresses are the guest's word, so each is looked up in guest memory first.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

use super::{
    Buffers, Counter, DeviceError, Driver, Fault, MachineDevice, MakeError, Poller, VirtioDevice,
    read_config_from, sys,
};
use crate::memory::GuestMemory;

/// Bits of the features (5.5.3), which `virtio-bindings` does not have.
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

const INFLATE: usize = 0;
/// Given back pages need nothing: they are mapped afresh when the guest touches them.
const DEFLATE: usize = 1;

/// The unit of a balloon, whatever the page size of the host (5.5.6).
const PAGE_BYTES: u64 = 4096;
const PAGE_SHIFT: u32 = 12;
/// Most page numbers in one request. Linux sends 256.
const MAX_PAGES: usize = 4096;
/// Ranges dropped, a system call each, that count as one chain more: pages without neighbours are as many
/// calls as pages, and a driver that lists nothing else shall not keep the event loop for longer than others
/// do. Linux's requests are below it.
const RANGES_PER_CHAIN: usize = 32;

/// The balloon.
pub struct Balloon {
    state: BalloonState,
    reclaimed_bytes: Counter,
}

/// All that a guest can observe of its balloon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages the guest is asked to give up.
    pub target_pages: u32,
    /// Pages it says it has given up.
    pub actual_pages: u32,
}

impl Balloon {
    /// An empty balloon.
    pub fn new() -> Self {
        Self::restore(BalloonState::default())
    }

    /// A balloon as it was saved.
    pub fn restore(state: BalloonState) -> Self {
        Self { state, reclaimed_bytes: Counter::default() }
    }

    /// Asks the guest to give up `pages` of 4 KiB in all. The caller tells it by
    /// [`super::Interrupt::config_changed`].
    pub fn set_target(&mut self, pages: u32) {
        self.state.target_pages = pages;
    }

    /// Bytes given back to the host, both ways.
    pub fn reclaimed_bytes(&self) -> Counter {
        self.reclaimed_bytes.clone()
    }

    /// Drops the pages whose numbers the guest has listed. Returns how many ranges they were.
    fn inflate(&self, memory: &GuestMemory, list: &Buffers<'_>) -> Result<usize, Fault> {
        let pages = list.len() / 4;
        if !list.len().is_multiple_of(4) || pages > MAX_PAGES {
            return Err(Fault::Value { what: "the size of a list of pages", value: list.len() as u64 });
        }
        let mut bytes = vec![0; list.len()];
        list.copy_to(&mut bytes);
        let numbers: Vec<u64> = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]).into())
            .collect();
        // Neighbours go together: a page each would cost a system call each.
        let mut ranges = 0;
        for run in numbers.chunk_by(|a, b| a + 1 == *b) {
            self.drop_range(memory, run[0] << PAGE_SHIFT, run.len() as u64 * PAGE_BYTES)?;
            ranges += 1;
        }
        Ok(ranges)
    }

    fn drop_range(&self, memory: &GuestMemory, address: u64, length: u64) -> Result<(), Fault> {
        let outside = |_| Fault::OutsideMemory { address, length };
        let slices = memory.get_slices(GuestAddress(address), length as usize, Permissions::Write);
        for slice in slices.map_err(outside)? {
            let dropped = sys::drop_pages(&slice.map_err(outside)?);
            self.reclaimed_bytes.add(dropped.map_err(|error| Fault::host("madvise", &error))?);
        }
        Ok(())
    }

    /// Drops reported ranges, which are the buffers themselves. Their edges may share a page with something else.
    /// Returns how many they were.
    fn drop_reported(&self, ranges: &Buffers<'_>) -> Result<usize, Fault> {
        for slice in ranges.slices() {
            let dropped = sys::drop_pages(slice).map_err(|error| Fault::host("madvise", &error))?;
            self.reclaimed_bytes.add(dropped);
        }
        Ok(ranges.slices().len())
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Balloon {
    type State = BalloonState;
    const NAME: &'static str = "balloon";
    const ID: u32 = VIRTIO_ID_BALLOON;
    /// Inflate, deflate, and reporting: it comes third when statistics and hinting are not offered.
    const QUEUE_SIZES: &'static [u16] = &[64, 64, 64];

    fn features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        space[..4].copy_from_slice(&self.state.target_pages.to_le_bytes());
        space[4..].copy_from_slice(&self.state.actual_pages.to_le_bytes());
        read_config_from(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The only field that a driver may write (5.5.4).
        if offset == 4
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.state.actual_pages = u32::from_le_bytes(word);
        }
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[queue];
        while let Some(chain) = ring.pop(driver.memory)? {
            let done = match queue {
                INFLATE => self.inflate(driver.memory, &chain.readable),
                DEFLATE => Ok(0),
                _ => self.drop_reported(&chain.writable),
            };
            let ranges = done.map_err(|fault| ring.fault(fault))?;
            ring.spend((ranges / RANGES_PER_CHAIN) as u16);
            ring.give_back(driver.memory, chain.head, 0)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.state.actual_pages = 0;
    }

    fn save(&self) -> BalloonState {
        self.state.clone()
    }
}

impl MachineDevice for Balloon {
    type Backend = ();

    fn make((): (), saved: Option<&BalloonState>, _: &Poller) -> Result<Self, MakeError> {
        Ok(Self::restore(saved.cloned().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::virtio::testing::{MEMORY, Part, Rig, WRITE};
    use proptest::prelude::*;
    use vm_memory::Bytes;

    const REPORT: usize = 2;

    fn rig() -> Rig<Balloon> {
        Rig::running(|_| Balloon::new())
    }

    fn reclaimed(rig: &Rig<Balloon>) -> u64 {
        rig.transport.with(|balloon| balloon.reclaimed_bytes().get())
    }

    fn list(pages: &[u32]) -> Vec<u8> {
        pages.iter().flat_map(|page| page.to_le_bytes()).collect()
    }

    #[test]
    fn inflated_pages_come_back_empty() {
        let mut rig = rig();
        rig.memory.write_slice(&[7; 4 * 4096], GuestAddress(0x40_0000)).unwrap();
        rig.ask(INFLATE, &[Part::Out(&list(&[0x400, 0x401, 0x403]))]);
        let first = |page: u64| rig.bytes(0x40_0000 + page * 4096, 1)[0];
        assert_eq!([first(0), first(1), first(2), first(3)], [0, 0, 7, 0]);
        assert_eq!(reclaimed(&rig), 3 * 4096);
    }

    #[test]
    fn pages_without_neighbours_end_the_turn_early() {
        let mut rig = rig();
        let scattered: Vec<u32> = (0..MAX_PAGES as u32).map(|i| 0x400 + i % 64 * 2).collect();
        (0..2).for_each(|_| drop(rig.offer(INFLATE, &[Part::Out(&list(&scattered))])));
        rig.write(0x50, INFLATE as u32);
        rig.run_for(1);
        assert!(rig.used(INFLATE).is_some());
        assert_eq!(rig.used(INFLATE), None, "the second list waits for the next turn");
        rig.run();
        assert!(rig.used(INFLATE).is_some());
    }

    #[test]
    fn deflating_needs_nothing() {
        let mut rig = rig();
        rig.ask(DEFLATE, &[Part::Out(&list(&[0x400]))]);
        assert_eq!(reclaimed(&rig), 0);
    }

    #[test]
    fn reported_range_loses_whole_pages_only() {
        let mut rig = rig();
        rig.memory.write_slice(&[7; 4 * 4096], GuestAddress(0x40_0000)).unwrap();
        rig.describe(REPORT, 0, 0x40_0010, 3 * 4096, WRITE, 0);
        rig.publish(REPORT, 0);
        rig.kick(REPORT);
        assert_eq!(rig.used(REPORT), Some((0, 0)));
        let first = |page: u64| rig.bytes(0x40_0000 + page * 4096, 1)[0];
        assert_eq!([first(0), first(1), first(2), first(3)], [7, 0, 0, 7]);
        assert_eq!(reclaimed(&rig), 2 * 4096);
    }

    #[test]
    fn page_outside_memory_ends_the_vm() {
        for page in [(MEMORY / 4096) as u32, u32::MAX] {
            let mut rig = rig();
            rig.offer(INFLATE, &[Part::Out(&list(&[page]))]);
            rig.kick(INFLATE);
            assert!(matches!(rig.failure().fault, Fault::OutsideMemory { .. }));
        }
    }

    #[test]
    fn target_and_actual_size_are_kept() {
        let rig = rig();
        rig.transport.with(|balloon| balloon.set_target(100));
        assert_eq!(rig.read(0x100), 100);
        rig.write(0x100, 5);
        rig.write(0x104, 77);
        rig.transport.write(0x104, &[1]);
        let saved = rig.transport.with(|balloon| balloon.save());
        assert_eq!(saved, BalloonState { target_pages: 100, actual_pages: 77 });
        assert_eq!(Balloon::restore(saved.clone()).save(), saved);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is listed, the balloon serves it or reports it, and touches nothing else.
        #[test]
        fn arbitrary_lists_never_panic(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                prop::collection::vec(1024u32..1100, 0..40).prop_map(|pages| list(&pages)),
            ],
        ) {
            let mut rig = rig();
            rig.memory.write_slice(&[7; 4096], GuestAddress(0x60_0000)).unwrap();
            rig.offer(INFLATE, &[Part::Out(&bytes)]);
            rig.kick(INFLATE);
            let failed = !rig.failures.lock().unwrap().is_empty();
            prop_assert_eq!(rig.used(INFLATE).is_some(), !failed);
            prop_assert_eq!(rig.bytes(0x60_0000, 4096), [7; 4096]);
        }
    }
}
