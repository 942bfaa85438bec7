//! The pump between a download and a layer's converter: hashes and counts the archive, and writes it into the
//! pipe. It blocks, so it has a thread of its own.
//!
//! Started by `layer`. It must not decide whether the digest is right: it says what it is.

use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::quota::Charge;
use std::io::{self, Read, Write};

/// Bytes of the archive for which one turn is good. A few KiB of a download may be all of a bomb, so a slot
/// for each piece bounds no work.
const TURN: u64 = 16 << 20;

/// Why a layer did not get through.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The compressed data is damaged.
    #[error("{0}")]
    Layer(io::Error),
    /// The image's layers together are beyond what this node takes.
    #[error(transparent)]
    Image(ImageError),
    /// Nobody waits for it any more.
    #[error("it was given up")]
    GivenUp,
    /// A bomb, or a layer beyond what this node takes.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
}

/// Pumps until `source` ends. Gives the digest of the archive. Of that, `limit` bounds this layer, and
/// `charge` all layers of the image. `turn` waits until the pump may go on for [`TURN`] bytes more than the
/// first; false where it need not.
///
/// # Errors
/// Those of the data. A sink that takes no more is no error: why it did is the converter's answer.
pub fn pump(
    mut source: impl Read,
    sink: impl Write,
    limit: u64,
    charge: &Charge,
    mut turn: impl FnMut() -> bool,
) -> Result<Digest, PumpError> {
    let mut archive = Willing { sink: Some(sink) };
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 << 10];
    let (mut total, mut granted) = (0u64, TURN);
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
        if total > granted {
            if !turn() {
                return Err(PumpError::GivenUp);
            }
            granted += TURN;
        }
        charge.add_archive(read as u64).map_err(PumpError::Image)?;
        hasher.update(&buffer[..read]);
        archive.write_all(&buffer[..read]).map_err(PumpError::Layer)?;
    }
    Ok(hasher.finish())
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
    use crate::image::compression;
    use crate::image::quota::Quota;
    use crate::image::test_registry::gzip;

    const LARGEST_IMAGE: u64 = 20_000;

    fn run(source: impl Read, limit: u64) -> Result<(Digest, Vec<u8>), PumpError> {
        let mut out = Vec::new();
        let charge = Quota::new("image".to_owned(), LARGEST_IMAGE).charge();
        pump(source, &mut out, limit, &charge, || true).map(|digest| (digest, out))
    }

    fn tar() -> Vec<u8> {
        b"some content ".repeat(1000)
    }

    #[test]
    fn archive_passes_and_its_digest_is_told() {
        assert_eq!(run(tar().as_slice(), 1 << 20).unwrap(), (Digest::of(&tar()), tar()));
    }

    #[test]
    fn damaged_compression_is_an_error() {
        let mut bytes = gzip(&tar());
        bytes.truncate(bytes.len() / 2);
        let source = compression::gzip(bytes.as_slice());
        assert!(matches!(run(source, 1 << 20), Err(PumpError::Layer(_))));
    }

    #[test]
    fn bomb_is_stopped_at_the_limit() {
        assert!(matches!(run(tar().as_slice(), 2000), Err(PumpError::TooLarge { limit: 2000 })));
    }

    #[test]
    fn bomb_within_the_limit_of_a_layer_is_stopped_at_that_of_its_image() {
        let stopped = run(io::repeat(0).take(1 << 20), 2 << 20);
        assert!(matches!(&stopped, Err(PumpError::Image(ImageError::TooLarge { limit: LARGEST_IMAGE, .. }))));
    }

    #[test]
    fn pump_asks_for_each_turn_and_stops_where_it_was_given_up() {
        let run = |amount, turns| {
            let (mut out, mut left) = (io::sink(), turns);
            let charge = Quota::new("image".to_owned(), u64::MAX).charge();
            let turn = || {
                left -= 1;
                left >= 0
            };
            let done = pump(io::repeat(0).take(amount), &mut out, u64::MAX, &charge, turn).map(drop);
            (done, turns - left)
        };
        assert!(matches!(run(TURN, 9), (Ok(()), 0)));
        assert!(matches!(run(TURN + 1, 9), (Ok(()), 1)));
        assert!(matches!(run(4 * TURN, 9), (Ok(()), 3)));
        assert!(matches!(run(4 * TURN, 1), (Err(PumpError::GivenUp), 2)));
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
        let charge = Quota::new("image".to_owned(), LARGEST_IMAGE).charge();
        assert_eq!(pump(tar().as_slice(), Deaf, 1 << 20, &charge, || true).unwrap(), Digest::of(&tar()));
    }
}
