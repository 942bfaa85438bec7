//! What carries a stream, and how its opening is answered.

use isopod_protocols::agent::StreamOpened;
use isopod_protocols::stdio::encode_opened;
use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// What carries a stream: a vsock connection, or a unix one in tests.
pub trait Connection: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static> Connection for T {}

/// Answers an opening message: with the number of the first byte that follows, or with the reason why there
/// is no stream.
pub async fn send_opened<C: Connection, E: Display>(
    connection: &mut C,
    start: Result<u64, E>,
) -> io::Result<()> {
    let opened = match start {
        Ok(offset) => StreamOpened { error: String::new(), offset },
        Err(error) => StreamOpened { error: error.to_string(), offset: 0 },
    };
    connection.write_all(&encode_opened(&opened)).await
}

/// Answers an opening message with a reason. A host that is gone is not told.
pub async fn refuse<C: Connection>(connection: &mut C, why: impl Display) {
    let _ = send_opened(connection, Err(why)).await;
}
