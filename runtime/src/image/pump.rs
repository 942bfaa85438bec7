//! The pump between a download and a layer's converter: decompresses, hashes what comes out, writes it into the pipe. It
//! blocks, so it has a thread of its own.
//!
//! Started by `layer`. It must not decide whether the digest is right: it says what it is.

use super::compression::decompress;
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::quota::Charge;
use bytes::{Buf, Bytes};
use std::io::{self, BufRead, Read, Write};
use tokio::sync::mpsc;

/// Why a layer did not get through.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The compressed data is damaged.
    #[error("{0}")]
    Layer(io::Error),
    /// The image's layers together are beyond what this node takes.
    #[error(transparent)]
    Image(ImageError),
    /// A bomb, or a layer beyond what this node takes.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
}

/// Pumps until the pieces end. Gives the digest of what was decompressed. Of that, `limit` bounds this layer, and `charge` all
/// layers of the image.
///
/// # Errors
/// Those of the data. A sink that takes no more is no error: why it did is the converter's answer.
pub fn pump(
    pieces: mpsc::Receiver<Bytes>,
    sink: impl Write,
    limit: u64,
    charge: &Charge,
) -> Result<Digest, PumpError> {
    let mut source = decompress(Pieces { pieces, current: Bytes::new() }).map_err(PumpError::Layer)?;
    let mut archive = Willing { sink: Some(sink) };
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0u64;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PumpError::Layer(error)),
        };
        total += read as u64;
        if total > limit {
            return Err(PumpError::TooLarge { limit });
        }
        charge.add_archive(read as u64).map_err(PumpError::Image)?;
        hasher.update(&buffer[..read]);
        archive.write_all(&buffer[..read]).map_err(PumpError::Layer)?;
    }
    Ok(hasher.finish())
}

/// The pieces of a download as one stream.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let amount = available.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

/// A sink that may stop listening: a converter does when it fails, and says why.
struct Willing<W> {
    sink: Option<W>,
}

impl<W: Write> Write for Willing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.sink.as_mut().map(|sink| sink.write_all(bytes)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => self.sink = None,
            Some(Err(error)) => return Err(error),
            Some(Ok(())) | None => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::quota::Quota;
    use flate2::write::GzEncoder;

    const LARGEST_IMAGE: u64 = 20_000;

    fn run(bytes: &[u8], limit: u64) -> Result<(Digest, Vec<u8>), PumpError> {
        let (send, pieces) = mpsc::channel(10_000);
        for piece in bytes.chunks(100) {
            send.try_send(Bytes::copy_from_slice(piece)).unwrap();
        }
        drop(send);
        let mut out = Vec::new();
        let charge = Quota::new("image".to_owned(), LARGEST_IMAGE).charge();
        pump(pieces, &mut out, limit, &charge).map(|digest| (digest, out))
    }

    fn tar() -> Vec<u8> {
        b"some content ".repeat(1000)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_gzip_and_zstd_give_the_same_archive() {
        let tar = tar();
        let members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
        let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
        for bytes in [tar.clone(), gzip(&tar), members, zstd] {
            assert_eq!(run(&bytes, 1 << 20).unwrap(), (Digest::of(&tar), tar.clone()));
        }
    }

    #[test]
    fn damaged_compression_is_an_error() {
        let mut bytes = gzip(&tar());
        let middle = bytes.len() / 2;
        bytes.truncate(middle);
        assert!(matches!(run(&bytes, 1 << 20), Err(PumpError::Layer(_))));
    }

    #[test]
    fn bomb_is_stopped_at_the_limit() {
        assert!(matches!(run(&gzip(&tar()), 2000), Err(PumpError::TooLarge { limit: 2000 })));
    }

    #[test]
    fn bomb_within_the_limit_of_a_layer_is_stopped_at_that_of_its_image() {
        let bomb = gzip(&vec![0; 1 << 20]);
        let stopped = run(&bomb, 2 << 20);
        assert!(matches!(&stopped, Err(PumpError::Image(ImageError::TooLarge { limit: LARGEST_IMAGE, .. }))));
    }

    #[test]
    fn digest_is_known_though_the_converter_stopped_listening() {
        struct Deaf;
        impl Write for Deaf {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (send, pieces) = mpsc::channel(1000);
        send.try_send(Bytes::from(tar())).unwrap();
        drop(send);
        let charge = Quota::new("image".to_owned(), LARGEST_IMAGE).charge();
        assert_eq!(pump(pieces, Deaf, 1 << 20, &charge).unwrap(), Digest::of(&tar()));
    }
}
