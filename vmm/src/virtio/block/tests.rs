//! The disk, driven as a guest would, and its table against a model.

mod worker;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::extents::MAX_EXTENTS;
use super::*;
use crate::virtio::testing::{Offer, Part, Rig};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn fd(file: &File) -> OwnedFd {
    file.try_clone().unwrap().into()
}

/// The whole file as it is now.
fn content(file: &File) -> Vec<u8> {
    let mut file = file.try_clone().unwrap();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

struct Guest {
    rig: Rig<Disk>,
    extents: Arc<Extents>,
    worker: Arc<Worker>,
}

impl Guest {
    fn new() -> Self {
        let guest = Self::with_worker_asleep();
        guest.wake_worker();
        guest
    }

    /// A guest whose host takes for ever to flush, until [`Self::wake_worker`].
    fn with_worker_asleep() -> Self {
        let (extents, worker) = (Arc::new(Extents::new()), Arc::new(Worker::new().unwrap()));
        let rig =
            Rig::running(|poller| Disk::new(extents.clone(), worker.clone(), &poller).expect("an epoll"));
        Self { rig, extents, worker }
    }

    fn wake_worker(&self) {
        let (worker, extents) = (self.worker.clone(), self.extents.clone());
        std::thread::spawn(move || worker.serve(&extents));
    }

    /// Asks for something without waiting for it.
    fn begin(&mut self, kind: u32, data: &[u8]) -> Offer {
        let offer = self.rig.offer(0, &[Part::Out(&header(kind, 0)), Part::Out(data), Part::In(1)]);
        self.rig.kick(0);
        offer
    }

    /// The status of a request that was begun.
    fn status(&self, offer: &Offer) -> u8 {
        self.rig.bytes(offer.buffers[2].0, 1)[0]
    }

    fn read(&mut self, sector: u64, length: usize) -> Result<Vec<u8>, u8> {
        let mut answer =
            self.rig.ask(0, &[Part::Out(&header(VIRTIO_BLK_T_IN, sector)), Part::In(length), Part::In(1)]);
        match answer.pop() {
            Some(OK) => Ok(answer),
            status => Err(status.unwrap()),
        }
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.rig.ask(0, &[Part::Out(&header(VIRTIO_BLK_T_OUT, sector)), Part::Out(data), Part::In(1)])[0]
    }

    fn command(&mut self, kind: u32, data: &[u8]) -> u8 {
        self.rig.ask(0, &[Part::Out(&header(kind, 0)), Part::Out(data), Part::In(1)])[0]
    }
}

#[test]
fn reads_and_writes_reach_the_file() {
    let mut guest = Guest::new();
    let root = file_of(&[7; 1024]);
    let scratch = file_of(&[0; 4096]);
    assert_eq!(guest.extents.attach(fd(&root), 1024, true).unwrap(), 0);
    let offset = guest.extents.attach(fd(&scratch), 4096, false).unwrap();
    assert_eq!(offset, ALIGNMENT);

    assert_eq!(guest.read(1, 512).unwrap(), [7; 512]);
    assert_eq!(guest.write(offset / 512 + 2, &[9; 1024]), OK);
    assert_eq!(guest.read(offset / 512 + 1, 1024).unwrap(), [[0; 512], [9; 512]].concat());
    assert_eq!(content(&scratch)[1024..2048], [9; 1024]);
    assert_eq!(guest.command(VIRTIO_BLK_T_FLUSH, &[]), OK);
    let counts = guest.rig.transport.with(|disk| (disk.read_bytes().get(), disk.written_bytes().get()));
    assert_eq!(counts, (512 + 1024, 1024));
}

#[test]
fn read_past_the_end_of_a_short_file_gives_zeroes() {
    let mut guest = Guest::new();
    guest.extents.attach(fd(&file_of(b"short")), 2048, true).unwrap();
    let bytes = guest.read(0, 2048).unwrap();
    assert_eq!(&bytes[..5], b"short");
    assert!(bytes[5..].iter().all(|byte| *byte == 0));
}

#[test]
fn unmapped_unaligned_and_oversized_requests_fail() {
    let mut guest = Guest::new();
    guest.extents.attach(fd(&file_of(&[1; 1024])), 1024, false).unwrap();
    // Partly past the extent, far away, at the end of the disk, and past all numbers.
    for sector in [1, 3, 1 << 20, (1 << 37) - 1, 1 << 37, u64::MAX] {
        assert_eq!(guest.read(sector, 1024), Err(IOERR), "{sector}");
        assert_eq!(guest.write(sector, &[0; 1024]), IOERR, "{sector}");
    }
    for length in [0, 1, 511, 513] {
        assert_eq!(guest.read(0, length), Err(IOERR), "{length}");
    }
    assert_eq!(guest.read(0, 1024).unwrap(), [1; 1024]);
}

#[test]
fn read_only_extent_cannot_be_changed() {
    let mut guest = Guest::new();
    let file = file_of(&[5; 2048]);
    guest.extents.attach(fd(&file), 2048, true).unwrap();
    assert_eq!(guest.write(0, &[0; 512]), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &range(0, 1, 0)), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_WRITE_ZEROES, &range(0, 1, 0)), IOERR);
    assert_eq!(content(&file), [5; 2048]);
}

#[test]
fn write_that_ends_in_a_read_only_extent_changes_nothing() {
    let mut guest = Guest::new();
    let (first, second) = (file_of(&[1; 512]), file_of(&[2; 512]));
    guest.extents.attach(fd(&first), ALIGNMENT, false).unwrap();
    guest.extents.attach(fd(&second), ALIGNMENT, true).unwrap();
    assert_eq!(guest.write(ALIGNMENT / 512 - 1, &[9; 1024]), IOERR);
    assert_eq!((content(&first), content(&second)), (vec![1; 512], vec![2; 512]));
    assert_eq!(guest.read(ALIGNMENT / 512 - 1, 1024).unwrap()[512..], [2; 512]);
}

/// In a process of its own, as the limit is the whole process's.
#[test]
fn write_behind_the_limit_of_files_is_an_io_error_and_no_end() {
    const CHILD: &str = "ISOPOD_TEST_OF_THE_LIMIT_OF_FILES";
    const LIMIT: u64 = 1 << 20;
    if std::env::var_os(CHILD).is_none() {
        let name = "virtio::block::tests::write_behind_the_limit_of_files_is_an_io_error_and_no_end";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let ran = again.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        assert!(ran.status.success(), "{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
        return;
    }
    crate::jail::limit_file_size(LIMIT).unwrap();
    let mut guest = Guest::new();
    let file = file_of(&[1; 512]);
    guest.extents.attach(fd(&file), 4 * LIMIT, false).unwrap();
    assert_eq!(guest.write(LIMIT / 512, &[2; 512]), IOERR);
    assert_eq!(guest.write(LIMIT / 512 - 1, &[2; 1024]), IOERR);
    assert_eq!(file.metadata().unwrap().len(), LIMIT);
    assert_eq!(guest.write(0, &[3; 512]), OK);
    assert_eq!(guest.read(0, 512).unwrap(), [3; 512]);
}

#[test]
fn one_turn_moves_a_bounded_number_of_bytes() {
    let mut guest = Guest::new();
    guest.extents.attach(fd(&file_of(&[])), 64 << 20, true).unwrap();
    for _ in 0..4 {
        guest.rig.offer(0, &[Part::Out(&header(VIRTIO_BLK_T_IN, 0)), Part::In(3 << 20), Part::In(1)]);
    }
    guest.rig.write(0x50, 0);
    let mut served = Vec::new();
    while guest.rig.events.turn(0).unwrap() > 0 {
        served.push(std::iter::from_fn(|| guest.rig.used(0)).count());
    }
    assert_eq!(served.iter().sum::<usize>(), 4);
    assert!(served.iter().all(|count| *count <= 2), "{served:?}");
}

#[test]
fn unknown_request_is_unsupported() {
    assert_eq!(Guest::new().command(77, &[]), UNSUPP);
}

#[test]
fn serial_number_is_told() {
    let mut guest = Guest::new();
    let parts = [Part::Out(&header(VIRTIO_BLK_T_GET_ID, 0)), Part::In(20), Part::In(1)];
    let answer = guest.rig.ask(0, &parts);
    assert_eq!((&answer[..14], answer[20]), (&b"isopod-extents"[..], OK));
}

#[test]
fn request_without_header_or_status_ends_the_vm() {
    for parts in [vec![Part::Out(&[0; 15]), Part::In(1)], vec![Part::Out(&[0; 16])], vec![Part::In(1)]] {
        let mut guest = Guest::new();
        guest.rig.offer(0, &parts);
        guest.rig.kick(0);
        assert!(matches!(guest.rig.failure().fault, Fault::Short { .. }));
    }
}

#[test]
fn detached_range_answers_with_errors() {
    let mut guest = Guest::new();
    let offset = guest.extents.attach(fd(&file_of(&[1; 512])), 512, false).unwrap();
    guest.extents.detach(offset).unwrap();
    assert_eq!(guest.read(offset / 512, 512), Err(IOERR));
    assert!(matches!(guest.extents.detach(offset), Err(ExtentError::Unknown(0))));
}

#[test]
fn freed_range_is_not_taken_again_at_once() {
    let extents = Extents::new();
    let file = file_of(&[1; 512]);
    let first = extents.attach(fd(&file), 512, false).unwrap();
    extents.detach(first).unwrap();
    assert_ne!(extents.attach(fd(&file), 512, false).unwrap(), first);
}

#[test]
fn file_that_cannot_serve_is_refused() {
    let extents = Extents::new();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(extents.attach(socket.into(), 512, true), Err(ExtentError::FileType)));
    let path = tempfile::NamedTempFile::new().unwrap();
    let reader = || OwnedFd::from(File::open(path.path()).unwrap());
    assert!(matches!(extents.attach(reader(), 512, false), Err(ExtentError::Access("writing"))));
    for length in [0, 1, 513, DISK_BYTES + 512] {
        assert!(matches!(extents.attach(reader(), length, true), Err(ExtentError::Length(_))));
    }
    extents.attach(reader(), DISK_BYTES, true).unwrap();
    assert!(matches!(extents.attach(reader(), 512, true), Err(ExtentError::Full { .. })));
}

#[test]
fn saved_table_is_built_again() {
    let extents = Extents::new();
    let file = file_of(&[1; 512]);
    for (length, read_only) in [(512, true), (3 << 20, false), (1024, true)] {
        extents.attach(fd(&file), length, read_only).unwrap();
    }
    extents.detach(ALIGNMENT).unwrap();
    let saved = extents.save();
    let again = Extents::restore(&saved, vec![fd(&file), fd(&file)]).unwrap();
    assert_eq!(again.save(), saved);
    assert!(matches!(Extents::restore(&saved, vec![fd(&file)]), Err(ExtentError::Saved)));
    let twice = [saved[0].clone(), saved[0].clone()];
    assert!(matches!(Extents::restore(&twice, vec![fd(&file), fd(&file)]), Err(ExtentError::Saved)));
}

#[derive(Debug, Clone)]
enum Step {
    Attach { sectors: u64, read_only: bool },
    Detach { which: usize },
    Read { which: usize, sector: u64, sectors: usize },
    Write { which: usize, sector: u64, sectors: usize, byte: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let (which, sector, sectors) = (0usize..8, 0u64..12, 1usize..6);
    prop_oneof![
        (1u64..10, any::<bool>()).prop_map(|(sectors, read_only)| Step::Attach { sectors, read_only }),
        which.clone().prop_map(|which| Step::Detach { which }),
        (which.clone(), sector.clone(), sectors.clone()).prop_map(|(which, sector, sectors)| Step::Read {
            which,
            sector,
            sectors
        }),
        (which, sector, sectors, any::<u8>()).prop_map(|(which, sector, sectors, byte)| Step::Write {
            which,
            sector,
            sectors,
            byte
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Extents keep apart and hold what was written to them, whatever comes and goes.
    #[test]
    fn disk_follows_its_model(steps in prop::collection::vec(step(), 1..40)) {
        let mut guest = Guest::new();
        let mut model: BTreeMap<u64, (bool, Vec<u8>)> = BTreeMap::new();
        for step in steps {
            let at = |which: usize, model: &BTreeMap<u64, _>| {
                model.keys().copied().nth(which % model.len().max(1)).unwrap_or(1 << 30)
            };
            match step {
                Step::Attach { sectors, read_only } => {
                    let file = file_of(&[]);
                    let offset = guest.extents.attach(fd(&file), sectors * 512, read_only).unwrap();
                    prop_assert_eq!(offset % ALIGNMENT, 0);
                    prop_assert!(model.insert(offset, (read_only, vec![0; sectors as usize * 512])).is_none());
                }
                Step::Detach { which } => {
                    let offset = at(which, &model);
                    prop_assert_eq!(guest.extents.detach(offset).is_ok(), model.remove(&offset).is_some());
                }
                Step::Read { which, sector, sectors } => {
                    let offset = at(which, &model);
                    let (from, length) = (sector as usize * 512, sectors * 512);
                    let expected = model.get(&offset).and_then(|(_, bytes)| bytes.get(from..from + length));
                    let found = guest.read(offset / 512 + sector, length).ok();
                    prop_assert_eq!(found.as_deref(), expected);
                }
                Step::Write { which, sector, sectors, byte } => {
                    let offset = at(which, &model);
                    let (from, data) = (sector as usize * 512, vec![byte; sectors * 512]);
                    let target = model.get_mut(&offset).filter(|(read_only, _)| !read_only);
                    let target = target.and_then(|(_, bytes)| bytes.get_mut(from..from + data.len()));
                    let expected = if target.is_some() { OK } else { IOERR };
                    if let Some(bytes) = target {
                        bytes.copy_from_slice(&data);
                    }
                    prop_assert_eq!(guest.write(offset / 512 + sector, &data), expected);
                }
            }
        }
    }

    /// Whatever lies in the request, the disk answers or reports, and comes to rest.
    #[test]
    fn arbitrary_requests_never_panic(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..8, any::<u64>()],
        out in prop::collection::vec(any::<u8>(), 0..600),
        lengths in prop::collection::vec(0usize..2000, 0..4),
    ) {
        let mut guest = Guest::new();
        guest.extents.attach(fd(&file_of(&[3; 4096])), 4096, false).unwrap();
        let header = header(kind, sector);
        let mut parts = vec![Part::Out(&header), Part::Out(&out)];
        parts.extend(lengths.iter().map(|length| Part::In(*length)));
        guest.rig.offer(0, &parts);
        guest.rig.kick(0);
        let failed = !guest.rig.failures.lock().unwrap().is_empty();
        let used = if failed { guest.rig.used(0) } else { guest.rig.wait_used(0) };
        prop_assert_eq!(used.is_some(), !failed);
    }
}

#[test]
fn table_has_a_bound() {
    let extents = Extents::new();
    let file = file_of(&[1; 512]);
    // The limit on descriptors of a test process may be lower than the table's.
    for _ in 0..MAX_EXTENTS {
        let Ok(copy) = file.try_clone() else { return };
        extents.attach(copy.into(), 512, true).unwrap();
    }
    let one_more = file.try_clone().map(|copy| extents.attach(copy.into(), 512, true));
    assert!(!matches!(one_more, Ok(Ok(_))));
}
