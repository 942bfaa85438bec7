//! A connection to an agent that is read no faster than any honest agent sends.
//!
//! HTTP/2 bounds what a peer may have sent of answers, by its windows; nothing there bounds the frames beside
//! them, such as pings, settings, empty pieces of answers and provisional headers, each of which costs the
//! daemon time and some of which it must answer. What comes faster than [`RATE`] waits in the guest.
//!
//! Used for every connection of [`super::AgentClient`]. Writing is not held up.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes a second: 64 of the longest answers, and forty times the events that are taken of an agent in a
/// second.
const RATE: u64 = 4 << 20;

/// Bytes that may come at once, after a time in which none did: as many as the connection's window.
const BURST: u64 = 256 * 1024;

/// Least that is waited for, so that a connection at its limit is not woken for every byte.
const LEAST: u64 = 16 * 1024;

/// Counts what may be read now.
#[derive(Debug)]
struct Allowance {
    bytes: u64,
    /// When `bytes` was right.
    at: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { bytes: BURST, at: now }
    }

    /// Adds what the time until `now` has brought.
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(1));
        // At most a second's bytes, which fit.
        let brought = (passed.as_nanos() * u128::from(RATE) / 1_000_000_000) as u64;
        if brought > 0 {
            self.bytes = (self.bytes + brought).min(BURST);
            self.at = now;
        }
    }

    /// When there will be [`LEAST`] bytes, if none are left.
    fn wait(&self) -> Option<Instant> {
        (self.bytes == 0).then(|| self.at + Duration::from_nanos(LEAST * 1_000_000_000 / RATE))
    }
}

/// The connection `S`, read at [`RATE`].
#[derive(Debug)]
pub struct Paced<S> {
    connection: S,
    allowance: Allowance,
    pause: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    pub fn new(connection: S) -> Self {
        let now = Instant::now();
        Self { connection, allowance: Allowance::new(now), pause: Box::pin(sleep_until(now)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.allowance.refill(Instant::now());
        while let Some(until) = this.allowance.wait() {
            this.pause.as_mut().reset(until);
            ready!(this.pause.as_mut().poll(cx));
            this.allowance.refill(Instant::now());
        }
        let most = usize::try_from(this.allowance.bytes).unwrap_or(usize::MAX).min(buf.remaining());
        let read = {
            let mut piece = ReadBuf::new(buf.initialize_unfilled_to(most));
            ready!(Pin::new(&mut this.connection).poll_read(cx, &mut piece))?;
            piece.filled().len()
        };
        buf.advance(read);
        this.allowance.bytes = this.allowance.bytes.saturating_sub(read as u64);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().connection).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn flood_is_read_at_its_rate_and_whole() {
        let (host, mut agent) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..BURST + RATE / 4).map(|number| number as u8).collect();
        let expected = sent.clone();
        let flood = tokio::spawn(async move { agent.write_all(&sent).await.unwrap() });
        let mut paced = Paced::new(host);
        let (mut read, begun) = (Vec::new(), Instant::now());
        paced.read_to_end(&mut read).await.unwrap();
        flood.await.unwrap();
        assert!(read == expected);
        // Beyond the burst, a quarter of a second's bytes; what came with the last pause is not waited for.
        assert!(begun.elapsed() >= Duration::from_millis(230), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn burst_does_not_wait_and_writing_never_does() {
        let (host, mut agent) = UnixStream::pair().unwrap();
        let mut paced = Paced::new(host);
        paced.allowance.bytes = 0;
        paced.write_all(b"request").await.unwrap();
        let mut request = [0; 7];
        agent.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"request");
        assert!(Allowance::new(Instant::now()).wait().is_none());
    }

    proptest! {
        #[test]
        fn any_reads_stay_within_the_rate(
            steps in prop::collection::vec((0u64..3_000_000_000, any::<u32>()), 1..50),
        ) {
            let begun = Instant::now();
            let (mut allowance, mut now, mut read) = (Allowance::new(begun), begun, 0);
            for (nanoseconds, wish) in steps {
                now += Duration::from_nanos(nanoseconds);
                allowance.refill(now);
                let taken = allowance.bytes.min(wish.into());
                allowance.bytes -= taken;
                read += taken;
                let seconds = now.duration_since(begun).as_secs_f64();
                prop_assert!(read as f64 <= BURST as f64 + seconds * RATE as f64 + 1.0);
            }
        }
    }
}
