//! The bytes of one stream of one process, on a vsock connection of its own (guest port
//! [`crate::vsock::STDIO_PORT`]), so that a slow reader holds up only that stream.
//!
//! ```text
//! host                                             agent
//!  | -- StreamOpen (length-delimited protobuf) -----> |
//!  | <-- StreamOpened { error, offset } ------------- |
//!  |                                                  |
//!  | stdout, stderr:  <-- raw bytes from `offset` --- |   the agent keeps every byte until it is acknowledged, and stops
//!  |                  -- u64 LE: bytes kept so far -> |   reading the process's pipe when `WINDOW` bytes are waiting
//!  |                  <-- end of file --------------- |   the process and all who held its pipe are done
//!  |                                                  |
//!  | stdin:           -- raw bytes -----------------> |
//!  |                  -- end of file (half-close) --> |   the process reads end of file
//! ```
//!
//! An acknowledgement is the total number of bytes of the stream, counted from its beginning, that the host has written
//! where they belong. After a break the host opens the stream again and gets all from the last acknowledged byte on: a
//! host that dies between writing and acknowledging sees bytes twice, never not at all. A host that kept its own count
//! names it in [`StreamOpen::resume_at`](crate::agent::StreamOpen) and sees none twice.
//!
//! Only a half-close is end of file for stdin: a connection that is gone as a whole is a break, after which the host may open
//! the stream again (with `stdin_once`, it is end of file too). So a host that has half-closed keeps the connection until the
//! agent closes it, which it does when the process's pipe is closed.
//!
//! A later connection for a stream takes the place of an earlier one. A stream may be opened before the call that makes its
//! process has been answered.

use crate::agent::{StreamOpen, StreamOpened};
use prost::Message;

/// Bytes of one stream that the agent keeps unacknowledged before it stops reading the process's pipe.
pub const WINDOW: usize = 256 * 1024;

/// Longest opening message, in bytes, without its length prefix.
pub const MAX_OPENING: usize = 4096;

/// An opening message that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpeningError {
    /// Its length prefix promises more than [`MAX_OPENING`].
    #[error("opening message of {0} bytes, more than {MAX_OPENING}")]
    TooLong(usize),
    /// Its bytes are not the message.
    #[error("opening message cannot be decoded: {0}")]
    Malformed(String),
}

/// An opening message with its length prefix: two bytes, little endian.
fn encode(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let length = u16::try_from(body.len()).expect("opening messages hold ids of bounded length");
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// The bytes that open a stream, length prefix included.
pub fn encode_open(message: &StreamOpen) -> Vec<u8> {
    encode(message)
}

/// The bytes that answer it, length prefix included.
pub fn encode_opened(message: &StreamOpened) -> Vec<u8> {
    encode(message)
}

/// The length of the message that follows, from its two-byte prefix.
pub fn opening_length(prefix: [u8; 2]) -> Result<usize, OpeningError> {
    let length = usize::from(u16::from_le_bytes(prefix));
    if length > MAX_OPENING { Err(OpeningError::TooLong(length)) } else { Ok(length) }
}

/// Reads a [`StreamOpen`] without its prefix.
pub fn decode_open(body: &[u8]) -> Result<StreamOpen, OpeningError> {
    StreamOpen::decode(body).map_err(|e| OpeningError::Malformed(e.to_string()))
}

/// Reads a [`StreamOpened`] without its prefix.
pub fn decode_opened(body: &[u8]) -> Result<StreamOpened, OpeningError> {
    StreamOpened::decode(body).map_err(|e| OpeningError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Stream;
    use proptest::prelude::*;

    #[test]
    fn opening_message_survives_the_wire() {
        let open = StreamOpen {
            container_id: "c1".into(),
            process_id: String::new(),
            stream: Stream::Stderr.into(),
            resume_at: Some(7),
        };
        let bytes = encode_open(&open);
        assert_eq!(opening_length([bytes[0], bytes[1]]), Ok(bytes.len() - 2));
        assert_eq!(decode_open(&bytes[2..]), Ok(open));
    }

    #[test]
    fn length_over_the_limit_is_refused() {
        assert_eq!(opening_length(4097u16.to_le_bytes()), Err(OpeningError::TooLong(4097)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_open(&bytes);
            let _ = decode_opened(&bytes);
        }
    }
}
