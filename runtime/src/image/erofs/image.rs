//! Positioned reads of the image file, and little-endian numbers in what was read.
//!
//! The only system call is pread64: the file's length is never asked for, a read beyond its end is an error.

use super::error::ErofsError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The file that holds the image.
pub struct Image(pub File);

impl Image {
    /// Fills `buffer` from byte `offset` on.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ErofsError> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| i64::try_from(*end).is_ok());
        let read = match end {
            Some(_) => self.0.read_exact_at(buffer, offset),
            // pread64 would answer EINVAL, which does not tell what is wrong
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        };
        read.map_err(|source| ErofsError::Io { offset, source })
    }

    /// Reads `length` bytes from byte `offset` on. Callers bound `length`.
    pub fn read_vec(&self, offset: u64, length: usize) -> Result<Vec<u8>, ErofsError> {
        let mut bytes = vec![0; length];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// The `u16` at a constant position of a record of constant size.
pub fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([record[at], record[at + 1]])
}

/// The `u32` at a constant position of a record of constant size.
pub fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from(u16_at(record, at)) | u32::from(u16_at(record, at + 2)) << 16
}

/// The `u64` at a constant position of a record of constant size.
pub fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32
}
