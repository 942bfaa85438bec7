//! The pod's only disk (virtio 1.3, section 5.2): a large sparse address space into which files are mapped at run time,
//! as virtio-mmio has no hotplug (DESIGN decision 4).
//!
//! `extents.rs` is the table of what is mapped; this file serves requests on it. Guest memory goes straight to and from
//! the files. Requests that touch a byte without an extent, a read-only extent in the wrong way, or no whole sectors get
//! an I/O error; requests that are not even requests end the VM.
//!
//! I/O is done at once, on the event loop thread: extents are images and scratch files that live in the host's page
//! cache, where handing a request to another thread costs more than serving it. A read that misses the cache, and a flush,
//! hold up the pod's other devices meanwhile. If that ever shows in a measurement, give this device an event loop of its
//! own: nothing in here would change.

mod extents;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

pub use extents::{ALIGNMENT, DISK_BYTES, ExtentError, ExtentState, Extents};

use super::{Buffers, Chain, Counter, DeviceError, Driver, Fault, VirtioDevice, read_config_from, sys};
use extents::{Piece, SECTOR};

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
    read_bytes: Counter,
    written_bytes: Counter,
}

/// All that a guest can observe of its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// What is mapped where.
    pub extents: Vec<ExtentState>,
}

/// How a request that was well formed failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    IoError,
    Unsupported,
}

impl Disk {
    /// A disk of these extents, which the control thread shares.
    pub fn new(extents: Arc<Extents>) -> Self {
        Self { extents, read_bytes: Counter::default(), written_bytes: Counter::default() }
    }

    /// Bytes the guest read.
    pub fn read_bytes(&self) -> Counter {
        self.read_bytes.clone()
    }

    /// Bytes the guest wrote.
    pub fn written_bytes(&self) -> Counter {
        self.written_bytes.clone()
    }

    /// Serves one request and sets its status. Returns the bytes written to the chain.
    fn serve(&self, chain: Chain<'_>) -> Result<usize, Fault> {
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
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => identify(&writable),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear(kind, &readable),
            _ => Err(Refusal::Unsupported),
        };
        let (code, written) = match outcome {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::IoError) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        status.copy_from(&[code as u8]);
        Ok(written + 1)
    }

    fn read(&self, offset: Option<u64>, data: &Buffers<'_>) -> Result<usize, Refusal> {
        let mut rest = data.clone();
        for piece in self.pieces(offset, data.len())? {
            read_piece(&piece, rest.split_front(piece.length as usize)).map_err(refuse)?;
        }
        self.read_bytes.add(data.len());
        Ok(data.len())
    }

    fn write(&self, offset: Option<u64>, data: &Buffers<'_>) -> Result<usize, Refusal> {
        let pieces = self.pieces(offset, data.len())?;
        let files = files_to_change(&pieces)?;
        let mut rest = data.clone();
        for (piece, file) in pieces.iter().zip(files) {
            write_piece(file, piece.offset, rest.split_front(piece.length as usize)).map_err(refuse)?;
        }
        self.written_bytes.add(data.len());
        Ok(0)
    }

    /// Makes what was written survive a crash of the host.
    fn flush(&self) -> Result<usize, Refusal> {
        for extent in self.extents.take_dirty() {
            nix::unistd::fdatasync(extent.file()).map_err(|_| Refusal::IoError)?;
        }
        Ok(0)
    }

    /// Discards or zeroes ranges: both become holes in the files, which read as zeroes.
    fn clear(&self, kind: u32, ranges: &Buffers<'_>) -> Result<usize, Refusal> {
        let mut rest = ranges.clone();
        if rest.is_empty() || !rest.len().is_multiple_of(16) || rest.len() > 16 * MAX_RANGES {
            return Err(Refusal::IoError);
        }
        while let Some(range) = rest.split_front(16).first::<16>() {
            let [low, high, sectors, flags] = words(range);
            let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            // Discard has no flags, write-zeroes only this one (5.2.6.2).
            if flags & !unmap != 0 || (kind == VIRTIO_BLK_T_DISCARD && flags != 0) {
                return Err(Refusal::Unsupported);
            }
            if sectors > MAX_RANGE_SECTORS {
                return Err(Refusal::IoError);
            }
            let offset = (u64::from(high) << 32 | u64::from(low)).checked_mul(SECTOR);
            self.punch(kind, offset, u64::from(sectors) * SECTOR)?;
        }
        Ok(0)
    }

    fn punch(&self, kind: u32, offset: Option<u64>, length: u64) -> Result<(), Refusal> {
        let pieces = self.find(offset, length)?;
        for (piece, file) in pieces.iter().zip(files_to_change(&pieces)?) {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            match fallocate(file, hole, piece.offset as i64, piece.length as i64) {
                Ok(()) => {}
                // A discard is advice; zeroes are not, and the driver writes them itself when told.
                Err(Errno::EOPNOTSUPP) if kind == VIRTIO_BLK_T_DISCARD => {}
                Err(Errno::EOPNOTSUPP) => return Err(Refusal::Unsupported),
                Err(_) => return Err(Refusal::IoError),
            }
        }
        Ok(())
    }

    /// The extents below a read or write.
    fn pieces(&self, offset: Option<u64>, length: usize) -> Result<Vec<Piece>, Refusal> {
        let length = length as u64;
        if length == 0 || !length.is_multiple_of(SECTOR) || length > MAX_REQUEST {
            return Err(Refusal::IoError);
        }
        self.find(offset, length)
    }

    fn find(&self, offset: Option<u64>, length: u64) -> Result<Vec<Piece>, Refusal> {
        let inside = offset.filter(|offset| *offset < DISK_BYTES && DISK_BYTES - offset >= length);
        inside.and_then(|offset| self.extents.find(offset, length)).ok_or(Refusal::IoError)
    }
}

/// The files of all pieces, or a refusal if one is read-only: nothing is changed in part.
fn files_to_change(pieces: &[Piece]) -> Result<Vec<BorrowedFd<'_>>, Refusal> {
    pieces.iter().map(|piece| piece.extent.file_to_change().ok_or(Refusal::IoError)).collect()
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

fn identify(target: &Buffers<'_>) -> Result<usize, Refusal> {
    if target.len() < SERIAL.len() {
        return Err(Refusal::IoError);
    }
    Ok(target.copy_from(SERIAL))
}

fn refuse(_: io::Error) -> Refusal {
    Refusal::IoError
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
        while let Some(chain) = ring.pop(driver.memory)? {
            let head = chain.head;
            let written = self.serve(chain).map_err(|fault| ring.fault(fault))?;
            ring.give_back(driver.memory, head, written)?;
        }
        Ok(())
    }

    fn save(&self) -> DiskState {
        DiskState { extents: self.extents.save() }
    }
}
