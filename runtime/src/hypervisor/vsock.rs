//! A connection from the host to a port of a guest, by the socket that its VMM listens on.
//!
//! Used by `vm`, which sets the deadline. What the guest sends afterwards must be left in the stream.

use isopod_protocols::vsock::MAX_HANDSHAKE;
use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The handshake of `isopod_protocols::vsock`. Its answer is read byte by byte: what follows is the guest's stream.
pub async fn connect_guest(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut line = Vec::with_capacity(MAX_HANDSHAKE);
    while line.last() != Some(&b'\n') {
        if line.len() == MAX_HANDSHAKE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer to the handshake is too long",
            ));
        }
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(error) => return Err(error),
        }
    }
    match line.starts_with(b"OK ") {
        true => Ok(stream),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to the handshake is not OK")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn handshake(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("v");
        let listener = tokio::net::UnixListener::bind(&path)?;
        let guest = async {
            let (mut stream, _) = listener.accept().await?;
            let mut line = [0; 13];
            stream.read_exact(&mut line).await?;
            assert_eq!(&line, b"CONNECT 1024\n");
            stream.write_all(answer).await
        };
        let (connected, served) = tokio::join!(connect_guest(&path, 1024), guest);
        served?;
        let mut rest = Vec::new();
        connected?.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn handshake_leaves_the_guests_first_bytes_in_the_stream() {
        assert_eq!(handshake(b"OK 1073741824\nPRI * HTTP").await.unwrap(), b"PRI * HTTP");
    }

    #[tokio::test]
    async fn closed_or_strange_handshake_is_an_error() {
        let kind = async |answer| handshake(answer).await.unwrap_err().kind();
        assert_eq!(kind(b"").await, io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(b"NO\n").await, io::ErrorKind::InvalidData);
        assert_eq!(kind(&[b'O'; 100]).await, io::ErrorKind::InvalidData);
    }
}
