//! Decompresses a layer: gzip, zstd or neither, told from its first bytes, as media types are often wrong.
//!
//! Builders cut layers into pieces so that they can be read in parallel or in part: gzip members (eStargz, pigz), zstd frames
//! with skippable frames before, between and after them (pzstd, zstd:chunked). Whatever the pieces, their content is one
//! stream. Zeros after the last piece are padding of the storage that the layer went through; containerd with unpigz or igzip
//! takes them, so they are accepted. Anything else after the last piece is damage, as in Go.
//!
//! gzip is read by zlib-rs, which is Rust, and so in the daemon, by `feed`. zstd is read by libzstd, which is
//! C: only a jailed process calls [`zstd()`], by `worker`. Both stream: memory is bounded by gzip's 32 KiB
//! and by [`LARGEST_WINDOW`] whatever the layer says; what they yield has no bound, so the caller counts it.

use flate2::bufread::GzDecoder;
use std::fmt::Display;
use std::io::{self, BufRead, ErrorKind, Read};
use zstd::stream::raw::{DParameter, Decoder, Operation};

/// Binary logarithm of the largest window of a zstd frame: 128 MiB, which the decoder keeps in memory, as far
/// as the frame fills it. All levels of zstd stay within it, and so does `--long` without a number; the zstd
/// program refuses more without an option as well. containerd allows 512 MiB.
pub const LARGEST_WINDOW: u32 = 27;

/// Bytes that tell the format: magic and length of a skippable frame. Shorter content is not compressed by
/// any of the formats.
pub const LONGEST_MAGIC: usize = 8;

const GZIP: [u8; 3] = [0x1f, 0x8b, 8];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Magic of a skippable frame after its first byte, which is 0x50 to 0x5f.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// Compressed data that cannot be read: the inner error of an [`io::Error`] that has the kind of its cause.
#[derive(Debug, thiserror::Error)]
#[error("cannot decompress part {part} of the {format} data of the layer: {reason}; push the layer again")]
pub struct CompressionError {
    format: &'static str,
    part: u64,
    reason: String,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// It is not.
    Plain,
    /// Members of gzip.
    Gzip,
    /// Frames of zstd.
    Zstd,
}

impl Format {
    /// That of a layer which begins with `first`: [`LONGEST_MAGIC`] bytes, or all that there are.
    #[must_use]
    pub fn of(first: &[u8]) -> Self {
        if first.starts_with(&GZIP) {
            Self::Gzip
        } else if first.starts_with(&ZSTD) || is_skippable(first) {
            Self::Zstd
        } else {
            Self::Plain
        }
    }
}

/// The content of members of gzip. It gives errors of the source, and [`CompressionError`] for damaged data.
/// The first header is read at once.
pub fn gzip<R: BufRead>(source: R) -> impl Read + use<R> {
    Members { decoder: GzDecoder::new(Slot(Some(source))), part: 1, is_ended: false }
}

/// The content of frames of zstd, with errors as of [`gzip`].
///
/// # Errors
/// No memory is left.
pub fn zstd<R: BufRead>(source: R) -> io::Result<impl Read + use<R>> {
    Frames::new(source)
}

fn is_skippable(first: &[u8]) -> bool {
    first.len() >= LONGEST_MAGIC && first[0] & 0xf0 == 0x50 && first[1..4] == SKIPPABLE
}

/// What follows a part.
enum Following {
    Part,
    Nothing,
}

/// Looks at what follows a part. No part begins with a zero, so zeros are padding and must be the last.
fn following(source: &mut impl BufRead) -> io::Result<Following> {
    match source.fill_buf()?.first() {
        None => return Ok(Following::Nothing),
        Some(0) => {}
        Some(_) => return Ok(Following::Part),
    }
    loop {
        let bytes = source.fill_buf()?;
        if bytes.is_empty() {
            return Ok(Following::Nothing);
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(ErrorKind::InvalidData, "other bytes follow the zeros after its end"));
        }
        let amount = bytes.len();
        source.consume(amount);
    }
}

/// Adds what was read to errors of damaged data. Errors of the source stay as they are.
fn damaged(error: io::Error, format: &'static str, part: u64) -> io::Error {
    match error.kind() {
        kind @ (ErrorKind::InvalidData
        | ErrorKind::InvalidInput
        | ErrorKind::UnexpectedEof
        | ErrorKind::Other) => {
            io::Error::new(kind, CompressionError { format, part, reason: reason(&error) })
        }
        _ => error,
    }
}

fn reason(error: &(impl Display + ?Sized)) -> String {
    match error.to_string().as_str() {
        "" | "unexpected end of file" => "it breaks off".to_owned(),
        text => text.to_owned(),
    }
}

/// The members of a gzip stream.
struct Members<R> {
    decoder: GzDecoder<Slot<R>>,
    /// The member that is being read, counted from 1.
    part: u64,
    is_ended: bool,
}

impl<R: BufRead> Members<R> {
    fn read_members(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.is_ended {
            let read = self.decoder.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            match following(self.decoder.get_mut())? {
                Following::Nothing => self.is_ended = true,
                Following::Part => {
                    self.part += 1;
                    let source = self.decoder.get_mut().0.take();
                    self.decoder.reset(Slot(source));
                }
            }
        }
        Ok(0)
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.read_members(buffer).map_err(|error| damaged(error, "gzip", self.part))
    }
}

/// A source that can be moved from one decoder to the next: `GzDecoder::reset` keeps the decoder's memory, but takes the new
/// source before it gives the old one.
struct Slot<R>(Option<R>);

impl<R: BufRead> Read for Slot<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Ok(0), |source| source.read(buffer))
    }
}

impl<R: BufRead> BufRead for Slot<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.as_mut().map_or(Ok(&[]), BufRead::fill_buf)
    }

    fn consume(&mut self, amount: usize) {
        if let Some(source) = &mut self.0 {
            source.consume(amount);
        }
    }
}

/// The frames of a zstd stream. The decoder passes over skippable frames by itself.
struct Frames<R> {
    decoder: Decoder<'static>,
    source: R,
    /// The frame that is being read, counted from 1, with skippable frames.
    part: u64,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Between,
    InFrame,
    End,
}

impl<R: BufRead> Frames<R> {
    fn new(source: R) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(LARGEST_WINDOW))?;
        Ok(Self { decoder, source, part: 0, place: Place::Between })
    }

    fn read_frames(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.place {
                Place::End => return Ok(0),
                Place::InFrame => {}
                Place::Between => match following(&mut self.source)? {
                    Following::Nothing => {
                        self.place = Place::End;
                        continue;
                    }
                    Following::Part => {
                        self.decoder.reinit()?;
                        self.part += 1;
                        self.place = Place::InFrame;
                    }
                },
            }
            let input = self.source.fill_buf()?;
            let is_last = input.is_empty();
            let status = self.decoder.run_on_buffers(input, buffer).map_err(told)?;
            self.source.consume(status.bytes_read);
            if status.remaining == 0 {
                self.place = Place::Between;
            }
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            if is_last && self.place == Place::InFrame {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Says of a frame that it needs a larger window.
fn told(error: io::Error) -> io::Error {
    if error.to_string() != "Frame requires too much memory for decoding" {
        return error;
    }
    let mib = 1u64 << (LARGEST_WINDOW - 20);
    let text = format!("it needs more than {mib} MiB of memory; compress it with a smaller window");
    io::Error::new(ErrorKind::InvalidData, text)
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.read_frames(buffer).map_err(|error| damaged(error, "zstd", self.part))
    }
}

#[cfg(test)]
#[path = "compression_tests.rs"]
mod tests;
