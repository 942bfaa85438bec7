//! What waits for the host's disk: flushes and holes, and what becomes of them when a driver resets or a VM
//! is saved.

use super::*;

#[test]
fn discard_and_write_zeroes_make_holes() {
    let mut guest = Guest::new();
    let file = file_of(&[5; 64 << 10]);
    guest.extents.attach(fd(&file), 64 << 10, false).unwrap();
    let before = file.metadata().unwrap().blocks();

    let ranges = [range(0, 32, 0), range(64, 32, 0)].concat();
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &ranges), OK);
    assert_eq!(guest.command(VIRTIO_BLK_T_WRITE_ZEROES, &range(97, 1, 1)), OK);

    let bytes = content(&file);
    assert_eq!(bytes.len(), 64 << 10);
    for (sector, expected) in [(0, 0), (31, 0), (32, 5), (63, 5), (64, 0), (95, 0), (96, 5), (97, 0), (98, 5)]
    {
        assert_eq!(bytes[sector * 512..][..512], [expected; 512], "{sector}");
    }
    assert!(file.metadata().unwrap().blocks() < before);
}

#[test]
fn malformed_ranges_are_refused() {
    let mut guest = Guest::new();
    guest.extents.attach(fd(&file_of(&[5; 4096])), 4096, false).unwrap();
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &[]), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &[0; 15]), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &[0; 16 * 17]), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &range(0, 9, 0)), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &range(0, u32::MAX, 0)), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &range(u64::MAX, 1, 0)), IOERR);
    assert_eq!(guest.command(VIRTIO_BLK_T_DISCARD, &range(0, 1, 1)), UNSUPP);
    assert_eq!(guest.command(VIRTIO_BLK_T_WRITE_ZEROES, &range(0, 1, 2)), UNSUPP);
}

/// The guest's other requests go on while its host flushes, however long that takes, and so does the event
/// loop.
#[test]
fn slow_flush_holds_up_nothing() {
    let mut guest = Guest::with_worker_asleep();
    let file = file_of(&[1; 4096]);
    guest.extents.attach(fd(&file), 4096, false).unwrap();
    assert_eq!(guest.write(0, &[2; 512]), OK);
    let flush = guest.begin(VIRTIO_BLK_T_FLUSH, &[]);
    let discard = guest.begin(VIRTIO_BLK_T_DISCARD, &range(4, 1, 0));
    assert_eq!(guest.rig.used(0), None);

    assert_eq!(guest.read(0, 512).unwrap(), [2; 512]);
    assert_eq!(guest.write(1, &[3; 512]), OK);
    assert_eq!(guest.rig.used(0), None);

    guest.wake_worker();
    for offer in [flush, discard] {
        assert_eq!(guest.rig.wait_used(0), Some((offer.head, 1)));
        assert_eq!(guest.status(&offer), OK);
    }
    assert_eq!(content(&file)[2048..2560], [0; 512]);
}

/// A request that waits keeps its chain: the line of jobs is as long as the ring at most, whatever a driver
/// offers.
#[test]
fn chain_that_is_offered_again_before_it_was_given_back_ends_the_vm() {
    const ENTRIES: usize = Disk::QUEUE_SIZES[0] as usize;
    let mut guest = Guest::with_worker_asleep();
    guest.extents.attach(fd(&file_of(&[1; 4096])), 4096, false).unwrap();
    let discard = guest.begin(VIRTIO_BLK_T_DISCARD, &range(4, 1, 0));
    for _ in 1..ENTRIES {
        guest.rig.publish(0, discard.head);
    }
    guest.rig.kick(0);
    assert_eq!(guest.worker.waiting(), ENTRIES);
    assert!(guest.rig.failures.lock().unwrap().is_empty());

    guest.rig.publish(0, discard.head);
    guest.rig.kick(0);
    let again = DeviceError { device: "block", queue: Some(0), fault: Fault::OfferedTwice };
    assert_eq!((guest.rig.failure(), guest.worker.waiting()), (again, ENTRIES));
}

#[test]
fn flush_waits_for_the_one_before_and_for_what_was_written_since() {
    let mut guest = Guest::with_worker_asleep();
    guest.extents.attach(fd(&file_of(&[1; 4096])), 4096, false).unwrap();
    // Nothing was written: there is nothing to wait for.
    assert_eq!(guest.command(VIRTIO_BLK_T_FLUSH, &[]), OK);
    assert_eq!(guest.write(0, &[2; 512]), OK);
    let first = guest.begin(VIRTIO_BLK_T_FLUSH, &[]);
    let second = guest.begin(VIRTIO_BLK_T_FLUSH, &[]);
    assert_eq!(guest.rig.used(0), None);
    guest.wake_worker();
    let heads = [guest.rig.wait_used(0), guest.rig.wait_used(0)];
    assert_eq!(heads, [Some((first.head, 1)), Some((second.head, 1))]);
    assert!(!guest.extents.any_dirty());
    assert_eq!(guest.write(0, &[2; 512]), OK);
    assert!(guest.extents.any_dirty());
}

#[test]
fn flush_that_the_host_fails_is_an_error_and_the_next_one_tries_again() {
    let mut guest = Guest::new();
    guest.extents.attach(fd(&file_of(&[1; 512])), 512, false).unwrap();
    // A regular file that can be written, 12 bytes at a time, and not flushed (fsync(2), EINVAL). It keeps
    // its value.
    let path = "/proc/self/oom_score_adj";
    let value = std::fs::read_to_string(path).unwrap();
    let score = File::options().read(true).write(true).open(path).unwrap();
    let offset = guest.extents.attach(score.into(), 512, false).unwrap();
    let written = format!("{:<12}", value.trim()).repeat(43);
    assert_eq!(guest.write(offset / 512, &written.as_bytes()[..512]), OK);
    assert_eq!(guest.command(VIRTIO_BLK_T_FLUSH, &[]), IOERR);
    assert!(guest.extents.any_dirty());
    assert_eq!(guest.command(VIRTIO_BLK_T_FLUSH, &[]), IOERR);
}

#[test]
fn driver_that_resets_is_not_answered_for_what_it_began_before() {
    let mut guest = Guest::with_worker_asleep();
    guest.extents.attach(fd(&file_of(&[1; 512])), 512, false).unwrap();
    assert_eq!(guest.write(0, &[2; 512]), OK);
    for _ in 0..3 {
        guest.begin(VIRTIO_BLK_T_FLUSH, &[]);
        guest.rig.reset();
        guest.rig.run();
        guest.rig.start(u64::MAX);
    }
    guest.wake_worker();
    let flush = guest.begin(VIRTIO_BLK_T_FLUSH, &[]);
    assert_eq!(guest.rig.wait_used(0), Some((flush.head, 1)));
    assert_eq!(guest.rig.used(0), None);
    assert!(guest.rig.failures.lock().unwrap().is_empty());
}

#[test]
fn saved_disk_has_answered_what_it_had_begun() {
    let mut guest = Guest::with_worker_asleep();
    guest.extents.attach(fd(&file_of(&[1; 512])), 512, false).unwrap();
    assert_eq!(guest.write(0, &[2; 512]), OK);
    let flush = guest.begin(VIRTIO_BLK_T_FLUSH, &[]);
    guest.wake_worker();
    let saved = guest.rig.transport.save();
    assert_eq!(saved.rings[0].next_used, saved.rings[0].next_available);
    assert_eq!(guest.rig.used(0), Some((flush.head, 1)));
    assert_eq!(guest.status(&flush), OK);
}
