use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, Cursor, Read};
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
pub fn decompress(mut pieces: impl BufRead + 'static) -> io::Result<Box<dyn Read>> {
    let mut first = Vec::new();
    (&mut pieces).take(ZSTD.len() as u64).read_to_end(&mut first)?;
    let kind = (first.starts_with(&GZIP), first.starts_with(&ZSTD));
    let source = Read::chain(Cursor::new(first), pieces);
    Ok(match kind {
        (true, _) => Box::new(MultiGzDecoder::new(source)),
        (_, true) => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        _ => Box::new(source),
    })
}
