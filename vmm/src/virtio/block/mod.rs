//! The pod's only disk (virtio 1.3, section 5.2): a large sparse address space into which files are mapped at run time,
//! as virtio-mmio has no hotplug (DESIGN decision 4).
//!
//! `extents.rs` is the table of what is mapped; this file serves requests on it. Guest memory goes straight to and from
//! the files. Requests that touch a byte without an extent, a read-only extent in the wrong way, or no whole sectors get
//! an I/O error; requests that are not even requests end the VM.
//!
//! Reads and writes are done at once, on the event loop thread: extents are images and scratch files that live in the host's
//! page cache, where handing a request to another thread costs more than serving it. A guest has [`TURN_BYTES`] of them at a
//! time before its other devices and the daemon are served. What waits for the host's disk by its nature, flushes and holes,
//! is done by the [`Worker`]; requests behind them go on meanwhile. A read that misses the cache, and a write that the host
//! slows down, hold up the pod's other devices. If that ever shows in a measurement, give this device an event loop of its
//! own: nothing in here would change.

mod extents;
mod root;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

pub use extents::{ALIGNMENT, DISK_BYTES, ExtentError, ExtentState, Extents};
pub use root::Root;
pub use worker::Worker;

use super::{
    Buffers, Chain, Counter, DeviceError, Driver, EventSet, Fault, Poller, VirtioDevice, read_config_from,
    sys,
};
use extents::{Piece, SECTOR};
use worker::{RequestError, Ticket, Work};

const QUEUE: usize = 0;
/// Event key of the worker.
const WORKER_KEY: u32 = 0;

/// Bytes of requests that are served in one turn of the event loop, if the first has no more.
const TURN_BYTES: usize = 4 << 20;

/// Data buffers of a request. With header and status it fits into a ring.
const MAX_SEGMENTS: u32 = 254;
/// Longest read or write, in bytes. Linux keeps below 4 MiB.
const MAX_REQUEST: u64 = 32 << 20;
/// Ranges of one discard or write-zeroes request.
const MAX_RANGES: usize = 16;
/// Sectors of one such range: 2 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// What `/sys/block/vda/serial` shows.
const SERIAL: &[u8; 20] = b"isopod-extents\0\0\0\0\0\0";

/// The extent disk.
pub struct Disk {
    extents: Arc<Extents>,
    worker: Arc<Worker>,
    read_bytes: Counter,
    written_bytes: Counter,
}

/// All that a guest can observe of its disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// What is mapped where.
    pub extents: Vec<ExtentState>,
}

/// How far a request is.
enum Served {
    /// Its status is set; so many bytes were written to its chain.
    Done(usize),
    /// Its status is set by [`Disk::give_back_finished`].
    Begun(Work),
}

impl Disk {
    /// A disk of these extents, which the control thread shares. The caller has `worker` serve them on a thread.
    pub fn new(extents: Arc<Extents>, worker: Arc<Worker>, poller: &Poller) -> io::Result<Self> {
        poller.add(worker.event(), WORKER_KEY, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        Ok(Self { extents, worker, read_bytes: Counter::default(), written_bytes: Counter::default() })
    }

    /// What is mapped into the disk, which may change at any time.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Takes the extent at `offset` off the disk, and has the worker close its file.
    ///
    /// # Errors
    /// When no extent starts there.
    pub fn detach(&self, offset: u64) -> Result<(), ExtentError> {
        self.worker.close(self.extents.detach(offset)?);
        Ok(())
    }

    /// Bytes the guest read.
    pub fn read_bytes(&self) -> Counter {
        self.read_bytes.clone()
    }

    /// Bytes the guest wrote.
    pub fn written_bytes(&self) -> Counter {
        self.written_bytes.clone()
    }

    /// Serves one request, or tells the work that it takes.
    fn serve(&self, chain: Chain<'_>) -> Result<Served, Fault> {
        let Chain { mut readable, mut writable, .. } = chain;
        let status = writable.split_back(1);
        if status.is_empty() {
            return Err(Fault::Short { what: "the status of a block request", need: 1, have: 0 });
        }
        let header = readable.split_front(16);
        let header: [u8; 16] = header.first().ok_or(Fault::Short {
            what: "the header of a block request",
            need: 16,
            have: header.len(),
        })?;
        let [kind, _, low, high] = words(header);
        let offset = (u64::from(high) << 32 | u64::from(low)).checked_mul(SECTOR);

        let outcome = match kind {
            VIRTIO_BLK_T_IN => self.read(offset, &writable),
            VIRTIO_BLK_T_OUT => self.write(offset, &readable),
            VIRTIO_BLK_T_FLUSH if self.is_flushed() => Ok(0),
            VIRTIO_BLK_T_FLUSH => return Ok(Served::Begun(Work::Flush)),
            VIRTIO_BLK_T_GET_ID => identify(&writable),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => match self.holes(kind, &readable) {
                Ok(work) => return Ok(Served::Begun(work)),
                Err(refusal) => Err(refusal),
            },
            _ => Err(RequestError::Unsupported),
        };
        status.copy_from(&[status_code(outcome)]);
        Ok(Served::Done(outcome.unwrap_or(0) + 1))
    }

    /// Gives back the chains whose work is done.
    fn give_back_finished(&self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[QUEUE];
        for finished in self.worker.take_finished() {
            let Ticket { head, status } = finished.ticket;
            let written = driver.memory.write_obj(status_code(finished.outcome), status);
            written.map_err(|_| ring.fault(Fault::OutsideMemory { address: status.0, length: 1 }))?;
            ring.give_back(driver.memory, head, 1)?;
        }
        Ok(())
    }

    fn read(&self, offset: Option<u64>, data: &Buffers<'_>) -> Result<usize, RequestError> {
        let mut rest = data.clone();
        for piece in self.pieces(offset, data.len())? {
            read_piece(&piece, rest.split_front(piece.length as usize)).map_err(refuse)?;
        }
        self.read_bytes.add(data.len());
        Ok(data.len())
    }

    fn write(&self, offset: Option<u64>, data: &Buffers<'_>) -> Result<usize, RequestError> {
        let pieces = self.pieces(offset, data.len())?;
        let files = files_to_change(&pieces)?;
        let mut rest = data.clone();
        for (piece, file) in pieces.iter().zip(files) {
            let written = write_piece(file, piece.offset, rest.split_front(piece.length as usize));
            piece.extent.mark_dirty();
            written.map_err(refuse)?;
        }
        self.written_bytes.add(data.len());
        Ok(0)
    }

    /// Whether all that was written survives a crash of the host already.
    fn is_flushed(&self) -> bool {
        self.worker.is_idle() && !self.extents.any_dirty()
    }

    /// The work of discarding or zeroing ranges: both become holes in the files, which read as zeroes. Nothing is changed where
    /// one of the ranges is refused.
    fn holes(&self, kind: u32, ranges: &Buffers<'_>) -> Result<Work, RequestError> {
        let discard = kind == VIRTIO_BLK_T_DISCARD;
        let mut holes = Vec::new();
        let mut rest = ranges.clone();
        if rest.is_empty() || !rest.len().is_multiple_of(16) || rest.len() > 16 * MAX_RANGES {
            return Err(RequestError::IoError);
        }
        while let Some(range) = rest.split_front(16).first::<16>() {
            let [low, high, sectors, flags] = words(range);
            let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            // Discard has no flags, write-zeroes only this one (5.2.6.2).
            if flags & !unmap != 0 || (discard && flags != 0) {
                return Err(RequestError::Unsupported);
            }
            if sectors > MAX_RANGE_SECTORS {
                return Err(RequestError::IoError);
            }
            let offset = (u64::from(high) << 32 | u64::from(low)).checked_mul(SECTOR);
            let pieces = self.find(offset, u64::from(sectors) * SECTOR)?;
            files_to_change(&pieces)?;
            holes.extend(pieces);
        }
        Ok(Work::Holes { pieces: holes, discard })
    }

    /// The extents below a read or write.
    fn pieces(&self, offset: Option<u64>, length: usize) -> Result<Vec<Piece>, RequestError> {
        let length = length as u64;
        if length == 0 || !length.is_multiple_of(SECTOR) || length > MAX_REQUEST {
            return Err(RequestError::IoError);
        }
        self.find(offset, length)
    }

    fn find(&self, offset: Option<u64>, length: u64) -> Result<Vec<Piece>, RequestError> {
        let inside = offset.filter(|offset| *offset < DISK_BYTES && DISK_BYTES - offset >= length);
        inside.and_then(|offset| self.extents.find(offset, length)).ok_or(RequestError::IoError)
    }
}

/// The files of all pieces, or a refusal if one is read-only: nothing is changed in part.
fn files_to_change(pieces: &[Piece]) -> Result<Vec<BorrowedFd<'_>>, RequestError> {
    pieces.iter().map(|piece| piece.extent.file_to_change().ok_or(RequestError::IoError)).collect()
}

fn read_piece(piece: &Piece, mut data: Buffers<'_>) -> io::Result<()> {
    let mut offset = piece.offset;
    while !data.is_empty() {
        match sys::preadv(piece.extent.file(), &data, offset)? {
            // The file is shorter than its extent.
            0 => {
                data.zero();
                break;
            }
            count => {
                data.split_front(count);
                offset += count as u64;
            }
        }
    }
    Ok(())
}

fn write_piece(file: BorrowedFd<'_>, mut offset: u64, mut data: Buffers<'_>) -> io::Result<()> {
    while !data.is_empty() {
        match sys::pwritev(file.as_fd(), &data, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => {
                data.split_front(count);
                offset += count as u64;
            }
        }
    }
    Ok(())
}

fn identify(target: &Buffers<'_>) -> Result<usize, RequestError> {
    if target.len() < SERIAL.len() {
        return Err(RequestError::IoError);
    }
    Ok(target.copy_from(SERIAL))
}

fn refuse(_: io::Error) -> RequestError {
    RequestError::IoError
}

fn status_code<T>(outcome: Result<T, RequestError>) -> u8 {
    let code = match outcome {
        Ok(_) => VIRTIO_BLK_S_OK,
        Err(RequestError::IoError) => VIRTIO_BLK_S_IOERR,
        Err(RequestError::Unsupported) => VIRTIO_BLK_S_UNSUPP,
    };
    code as u8
}

/// Four little-endian words.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

/// The configuration space (5.2.4): the fields of the features that are offered, zeroes elsewhere.
fn configuration() -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &(DISK_BYTES / SECTOR).to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    for offset in [36, 48] {
        put(offset, &MAX_RANGE_SECTORS.to_le_bytes());
        put(offset + 4, &(MAX_RANGES as u32).to_le_bytes());
    }
    // Discards need no alignment; holes are made of whole pages, the rest is zeroed.
    put(44, &1u32.to_le_bytes());
    // Write-zeroes may make holes.
    put(56, &[1]);
    space
}

impl VirtioDevice for Disk {
    type State = DiskState;
    const NAME: &'static str = "block";
    const ID: u32 = VIRTIO_ID_BLOCK;
    const QUEUE_SIZES: &'static [u16] = &[256];

    fn features(&self) -> u64 {
        [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&configuration(), offset, data);
    }

    fn queue_event(&mut self, queue: usize, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        let ring = &mut driver.rings[queue];
        let mut bytes = 0;
        while let Some(chain) = ring.pop(driver.memory)? {
            let (head, status) = (chain.head, chain.last_writable);
            bytes += chain.readable.len() + chain.writable.len();
            match (self.serve(chain).map_err(|fault| ring.fault(fault))?, status) {
                (Served::Done(written), _) => ring.give_back(driver.memory, head, written)?,
                (Served::Begun(work), Some(status)) => self.worker.begin(Ticket { head, status }, work),
                // `serve` has found the status where the chain ends.
                (Served::Begun(_), None) => ring.give_back(driver.memory, head, 0)?,
            }
            if bytes >= TURN_BYTES {
                ring.kick();
                break;
            }
        }
        Ok(())
    }

    fn event(
        &mut self,
        _key: u32,
        _events: EventSet,
        driver: Option<&mut Driver<'_>>,
    ) -> Result<(), DeviceError> {
        driver.map_or(Ok(()), |driver| self.give_back_finished(driver))
    }

    fn settle(&mut self, driver: &mut Driver<'_>) -> Result<(), DeviceError> {
        self.worker.settle();
        self.give_back_finished(driver)
    }

    fn reset(&mut self) {
        self.worker.forget();
    }

    fn save(&self) -> DiskState {
        DiskState { extents: self.extents.save() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.worker.end();
    }
}
