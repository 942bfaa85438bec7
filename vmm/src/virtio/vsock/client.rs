//! A host program that has connected to the vsock's unix socket and not yet said which guest port it wants.
//!
//! The handshake is one line, `CONNECT <port>\n`. What follows the line belongs to the connection, so the line is looked
//! at in place and only its own bytes are taken.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use isopod_protocols::vsock::MAX_HANDSHAKE;
use nix::sys::socket::{MsgFlags, recv};

/// How long a client may take to send its line: longer than the daemon waits for the answer, so that on a crowded host it is the
/// daemon that gives up, and says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client in its handshake.
pub struct PendingClient {
    stream: UnixStream,
    deadline: Instant,
}

/// How far the handshake is.
#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The line is not complete.
    Waiting,
    /// The client wants this guest port.
    Connect(u32),
    /// The client is gone, or said something else.
    Broken,
}

impl PendingClient {
    /// A client that has just been accepted, non-blocking.
    pub fn new(stream: UnixStream, now: Instant) -> Self {
        Self { stream, deadline: now + PATIENCE }
    }

    /// Whether it has been silent for too long.
    pub fn late(&self, now: Instant) -> bool {
        now >= self.deadline
    }

    /// Looks at what the client has sent.
    pub fn advance(&self) -> Handshake {
        let mut line = [0; MAX_HANDSHAKE];
        let seen = match self.receive(&mut line, MsgFlags::MSG_PEEK) {
            Ok(0) => return Handshake::Broken,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Handshake::Waiting,
            Err(_) => return Handshake::Broken,
        };
        let Some(end) = line[..seen].iter().position(|byte| *byte == b'\n') else {
            return if seen < MAX_HANDSHAKE { Handshake::Waiting } else { Handshake::Broken };
        };
        let Some(port) = parse(&line[..end]) else { return Handshake::Broken };
        match self.receive(&mut line[..=end], MsgFlags::empty()) {
            Ok(count) if count == end + 1 => Handshake::Connect(port),
            _ => Handshake::Broken,
        }
    }

    /// The stream, once the line was taken.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    fn receive(&self, into: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        Ok(recv(self.stream.as_raw_fd(), into, flags | MsgFlags::MSG_DONTWAIT)?)
    }
}

/// The port of a `CONNECT <port>` line without its newline.
fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    // Digits only: `parse` alone would also take a sign.
    digits.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn client() -> (PendingClient, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (PendingClient::new(near, Instant::now()), far)
    }

    #[test]
    fn line_may_come_in_parts_and_leaves_what_follows() {
        let (client, mut far) = client();
        assert_eq!(client.advance(), Handshake::Waiting);
        far.write_all(b"CONNECT 10").unwrap();
        assert_eq!(client.advance(), Handshake::Waiting);
        far.write_all(b"24\nmore").unwrap();
        assert_eq!(client.advance(), Handshake::Connect(1024));
        let mut rest = [0; 4];
        client.into_stream().read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"more");
    }

    #[test]
    fn other_lines_break_the_handshake() {
        let long = [b'C'; MAX_HANDSHAKE];
        let lines: [&[u8]; 8] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT -1\n",
            b"CONNECT 4294967296\n",
            b"connect 1\n",
            &long,
        ];
        for line in lines {
            let (client, mut far) = client();
            far.write_all(line).unwrap();
            assert_eq!(client.advance(), Handshake::Broken, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn client_that_leaves_breaks_the_handshake() {
        let (client, far) = client();
        drop(far);
        assert_eq!(client.advance(), Handshake::Broken);
    }

    #[test]
    fn silence_has_an_end() {
        let (client, _far) = client();
        assert!(!client.late(Instant::now()));
        assert!(client.late(Instant::now() + PATIENCE));
    }
}
