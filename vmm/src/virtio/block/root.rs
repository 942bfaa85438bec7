//! The guest's own root, which is the first extent of its disk, and how a machine makes the disk on it.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc, thread};

use super::extents::{ExtentError, ExtentState, Extents, SECTOR};
use super::worker::Worker;
use super::{Disk, DiskState};
use crate::confined;
use crate::seccomp::{Filter, Stage};
use crate::virtio::{MachineDevice, MakeError, Poller, SavedStateError, VirtioDevice};

/// The image of the guest's root.
pub struct Root {
    file: File,
    /// Its size in sectors of 512 bytes, the last of which may be partial.
    pub sectors: u64,
}

impl Root {
    /// Measures the image.
    pub fn new(image: OwnedFd) -> io::Result<Self> {
        let file = File::from(image);
        let sectors = file.metadata()?.len().div_ceil(SECTOR);
        Ok(Self { file, sectors })
    }

    /// The extents of a disk that has this image only; a `saved` disk must be one of an image of this size.
    fn extents(self, saved: Option<&DiskState>) -> Result<Extents, MakeError> {
        let refused =
            |error: ExtentError| MakeError::Backend { step: "attach the guest root", source: error.into() };
        let length = self.sectors * SECTOR;
        let Some(saved) = saved else {
            let extents = Extents::new();
            extents.attach(self.file.into(), length, true).map_err(refused)?;
            return Ok(extents);
        };
        if saved.extents != [ExtentState { offset: 0, length, read_only: true }] {
            let what = "other extents than the guest root that was given";
            return Err(SavedStateError { device: Disk::NAME, what }.into());
        }
        Extents::restore(&saved.extents, vec![self.file.into()]).map_err(refused)
    }
}

impl MachineDevice for Disk {
    type Backend = Root;

    fn make(root: Root, saved: Option<&DiskState>, poller: &Poller) -> Result<Self, MakeError> {
        let extents = Arc::new(root.extents(saved)?);
        let worker = start_worker(&extents)?;
        Ok(Disk::new(extents, worker, poller)?)
    }
}

/// Starts the thread of the disk's worker, confined. It ends with the process.
fn start_worker(extents: &Arc<Extents>) -> Result<Arc<Worker>, MakeError> {
    /// Bytes: no call here goes deep.
    const STACK: usize = 64 << 10;
    const STEP: &str = "start the disk's worker";
    let worker = Arc::new(Worker::new()?);
    let filter = Filter::new(Stage::Disk).map_err(|error| MakeError::host(STEP, error))?;
    let thread = thread::Builder::new().name("disk".into()).stack_size(STACK);
    let (serving, extents) = (worker.clone(), extents.clone());
    confined::spawn(thread, filter, move || serving.serve(&extents))
        .map_err(|error| MakeError::host(STEP, error))?;
    Ok(worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(bytes: u64) -> Root {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Root::new(file.into()).unwrap()
    }

    #[test]
    fn root_is_the_first_extent_in_whole_sectors() {
        let extents = root(1000).extents(None).unwrap();
        assert_eq!(extents.save(), [ExtentState { offset: 0, length: 1024, read_only: true }]);
    }

    #[test]
    fn saved_disk_must_hold_the_root_and_nothing_else() {
        let extent = |length, read_only| ExtentState { offset: 0, length, read_only };
        let restored = |extents| root(1000).extents(Some(&DiskState { extents }));
        assert!(restored(vec![extent(1024, true)]).is_ok());
        let more = ExtentState { offset: 1 << 20, ..extent(1024, true) };
        for other in
            [vec![], vec![extent(512, true)], vec![extent(1024, false)], vec![extent(1024, true), more]]
        {
            assert!(matches!(restored(other), Err(MakeError::Saved(_))));
        }
    }
}
