//! The host's end of a process's streams: opens one over vsock, passes its bytes on, and acknowledges what has arrived.
//!
//! Called by `container` for logs, and by `exec`. It must not decide where bytes go: a [`Sink`] does.
//!
//! Source: `isopod_protocols::stdio`.

use crate::hostile_text;
use isopod_protocols::agent::{Stream, StreamOpen};
use isopod_protocols::stdio as wire;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Time the agent has to answer an opening.
const OPENING: Duration = Duration::from_secs(10);

/// Bytes read at once: the most that a stream holds of what its sink has not taken yet.
const CHUNK: usize = 64 * 1024;

/// Longest reason of a refusal that is passed on, bytes.
const MAX_REASON: usize = 300;

/// Why a stream could not be opened, or broke.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The connection.
    #[error("stream of container {container}: {source}")]
    Io {
        /// Whose stream.
        container: String,
        /// What the system said.
        source: io::Error,
    },
    /// The agent did not answer.
    #[error("stream of container {0}: the agent did not open it within {OPENING:?}")]
    Timeout(String),
    /// The agent's answer cannot be read.
    #[error("stream of container {container}: the agent's answer cannot be read: {source}")]
    Answer {
        /// Whose stream.
        container: String,
        /// What is wrong with it.
        source: wire::OpeningError,
    },
    /// The agent begins at another byte than it was asked for.
    #[error("stream of container {container}: the agent begins at byte {offset}, not at {asked}")]
    WrongOffset {
        /// Whose stream.
        container: String,
        /// The byte asked for.
        asked: u64,
        /// The agent's answer.
        offset: u64,
    },
    /// The agent refused.
    #[error("stream of container {container}: the agent refused: {reason}")]
    Refused {
        /// Whose stream.
        container: String,
        /// The agent's words, printable and cut.
        reason: String,
    },
}

/// Where the bytes of an output stream go.
pub trait Sink {
    /// Takes bytes; answers how many bytes of the stream, from its beginning, are now where they belong.
    /// Nothing more is read from the stream until it has answered: that is what slows a guest down.
    ///
    /// # Errors
    /// Ends the stream.
    fn take(&mut self, bytes: Vec<u8>) -> impl Future<Output = io::Result<u64>> + Send;
}

/// Which stream of which process.
#[derive(Debug, Clone)]
pub struct Address {
    /// The container.
    pub container_id: String,
    /// The exec, or empty for the container's first process.
    pub process_id: String,
    /// The stream.
    pub stream: Stream,
}

/// Opens a stream on a fresh connection to the agent's stdio port. Answers the number of the first byte to
/// come, which is `resume_at` where that is given.
///
/// # Errors
/// See [`StdioError`].
pub async fn open(
    connection: &mut UnixStream,
    address: &Address,
    resume_at: Option<u64>,
) -> Result<u64, StdioError> {
    let container = || address.container_id.clone();
    let broken = |source| StdioError::Io { container: container(), source };
    let request = StreamOpen {
        container_id: container(),
        process_id: address.process_id.clone(),
        stream: address.stream.into(),
        resume_at,
    };
    connection.write_all(&wire::encode_open(&request)).await.map_err(broken)?;
    let answer = tokio::time::timeout(OPENING, read_opening(connection)).await;
    let body = answer.map_err(|_| StdioError::Timeout(container()))?.map_err(broken)?;
    let opened =
        wire::decode_opened(&body).map_err(|source| StdioError::Answer { container: container(), source })?;
    if !opened.error.is_empty() {
        let reason = hostile_text::line(&opened.error, MAX_REASON);
        return Err(StdioError::Refused { container: container(), reason });
    }
    match (resume_at, opened.offset) {
        (Some(asked), offset) if offset != asked => {
            Err(StdioError::WrongOffset { container: container(), asked, offset })
        }
        (_, offset) => Ok(offset),
    }
}

async fn read_opening(connection: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut prefix = [0; 2];
    connection.read_exact(&mut prefix).await?;
    let length = wire::opening_length(prefix).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    Ok(body)
}

/// Passes an opened output stream to its sink until the process and all who hold its pipe are done.
///
/// # Errors
/// The connection broke, or the sink takes no more: what was not acknowledged comes again on the next connection.
pub async fn pump(connection: &mut UnixStream, sink: &mut impl Sink) -> io::Result<()> {
    loop {
        // A silent stream, as most are, holds no buffer.
        connection.readable().await?;
        let mut bytes = Vec::with_capacity(CHUNK);
        match connection.try_read_buf(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let arrived = sink.take(bytes).await?;
        connection.write_all(&arrived.to_le_bytes()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::agent::StreamOpened;
    use proptest::prelude::*;

    struct Collect(Vec<u8>);

    impl Sink for Collect {
        async fn take(&mut self, bytes: Vec<u8>) -> io::Result<u64> {
            self.0.extend_from_slice(&bytes);
            Ok(self.0.len() as u64)
        }
    }

    fn address() -> Address {
        Address { container_id: "c1".into(), process_id: String::new(), stream: Stream::Stdout }
    }

    /// What comes of opening a stream whose agent sends these bytes and hangs up.
    async fn opened(resume_at: Option<u64>, answer: &[u8]) -> Result<u64, StdioError> {
        let (mut host, mut agent) = UnixStream::pair().unwrap();
        agent.write_all(answer).await.unwrap();
        agent.shutdown().await.unwrap();
        open(&mut host, &address(), resume_at).await
    }

    #[tokio::test]
    async fn bytes_arrive_and_are_acknowledged() {
        let (mut host, mut agent) = UnixStream::pair().unwrap();
        let agent = tokio::spawn(async move {
            let body = read_opening(&mut agent).await.unwrap();
            assert_eq!(wire::decode_open(&body).unwrap().resume_at, Some(3));
            let opened = StreamOpened { error: String::new(), offset: 3 };
            agent.write_all(&wire::encode_opened(&opened)).await.unwrap();
            agent.write_all(b"hello").await.unwrap();
            let mut acknowledged = [0; 8];
            agent.read_exact(&mut acknowledged).await.unwrap();
            u64::from_le_bytes(acknowledged)
        });
        assert_eq!(open(&mut host, &address(), Some(3)).await.unwrap(), 3);
        let mut sink = Collect(Vec::new());
        pump(&mut host, &mut sink).await.unwrap();
        assert_eq!(sink.0, b"hello");
        assert_eq!(agent.await.unwrap(), 5);
    }

    #[tokio::test]
    async fn refusal_is_made_printable() {
        let refused = StreamOpened { error: "no\u{1b}[2J such\n\u{202e}".into(), offset: 0 };
        let error = opened(None, &wire::encode_opened(&refused)).await.unwrap_err().to_string();
        assert!(error.ends_with(r"no\u{1b}[2J such\n\u{202e}"), "{error}");
    }

    #[tokio::test]
    async fn agent_that_begins_elsewhere_is_refused() {
        let lie = StreamOpened { error: String::new(), offset: u64::MAX };
        let outcome = opened(Some(7), &wire::encode_opened(&lie)).await;
        assert!(matches!(outcome, Err(StdioError::WrongOffset { asked: 7, .. })), "{outcome:?}");
    }

    #[tokio::test]
    async fn agent_that_hangs_up_is_an_error() {
        let (mut host, agent) = UnixStream::pair().unwrap();
        drop(agent);
        assert!(matches!(open(&mut host, &address(), None).await, Err(StdioError::Io { .. })));
    }

    /// Any bytes, and answers of any content.
    fn answers() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![Just(String::new()), "[\\PC\n\u{1b}\u{202e}]{0,900}"];
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..6000),
            (text, any::<u64>())
                .prop_map(|(error, offset)| wire::encode_opened(&StreamOpened { error, offset })),
        ]
    }

    proptest! {
        #[test]
        fn any_answer_opens_at_the_byte_asked_for_or_is_a_bounded_error(
            answer in answers(), resume_at in any::<Option<u64>>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            match runtime.block_on(opened(resume_at, &answer)) {
                Ok(offset) => prop_assert!(resume_at.is_none_or(|asked| asked == offset)),
                Err(error) => {
                    let text = error.to_string();
                    prop_assert!(text.len() < 600 && !text.contains(char::is_control), "{}", text);
                }
            }
        }
    }
}
