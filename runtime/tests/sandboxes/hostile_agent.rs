//! Agents that attack the daemon by what they answer: the bytes are written here, as no honest encoder would
//! write them.

use crate::fakes::FakeAgent;
use isopod_protocols::agent::agent_server::AgentServer;
use isopod_protocols::agent::*;
use isopod_protocols::guest::MAX_CONTAINERS;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use std::convert::Infallible;
use std::future::ready;
use std::iter::repeat;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, BoxStream, Service, http};
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tower::service_fn;

/// How an agent attacks the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Endless snapshots of 4 MiB, each of two million entries that hold nothing. Figures of containers
    /// alike.
    LongAnswers,
    /// The same in answers that are short enough, of 30,000 entries each.
    ManyEntries,
    /// Endless snapshots of a full pod of containers that nobody had made. Their removal is never answered.
    Strangers,
    /// Tells without end that a container has failed to start. Its start is never answered.
    FailedStarts,
    /// Has a container's user in more groups than there may be.
    ManyGroups,
    /// Answers a question for figures with short messages without end, where one is due.
    ManyAnswers,
    /// Never answers a start of an exec, nor an end.
    SilentExecs,
}

/// Bytes of an answer of [`Attack::LongAnswers`], which the daemon took when it had no other limit than
/// gRPC's usual one.
const LONG: usize = 4 << 20;

/// Bytes of an answer of [`Attack::ManyEntries`].
const SHORT: usize = 60_000;

impl Attack {
    /// What answers a call in place of the agent, if that call is part of the attack.
    fn answers(self, method: &str, agent: &Arc<FakeAgent>) -> Option<BoxStream<Bytes>> {
        match (self, method) {
            (Self::LongAnswers, "Watch") => Some(endless(event(1, &tiny_entries(LONG - 8)))),
            (Self::LongAnswers, "Stats") => Some(once(tiny_entries(LONG))),
            (Self::ManyAnswers, "Stats") => Some(endless(tiny_entries(MAX_CONTAINERS))),
            (Self::ManyEntries, "Watch") => Some(endless(event(1, &tiny_entries(SHORT)))),
            (Self::ManyEntries, "Stats") => Some(once(tiny_entries(SHORT))),
            (Self::Strangers, "Watch") => Some(endless(event(1, &strangers().encode_to_vec()))),
            (Self::FailedStarts, "Watch") => Some(failed_starts(Arc::clone(agent))),
            _ => None,
        }
    }
}

/// So many bytes of a list that is the first field of its message: an entry is a tag, and the length 0.
fn tiny_entries(bytes: usize) -> Bytes {
    [0x0a, 0x00].repeat(bytes / 2).into()
}

/// An `Event` with a field of that number: 1 is a snapshot, 2 a change.
fn event(field: u8, content: &[u8]) -> Bytes {
    let mut event = vec![field << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut event);
    event.extend_from_slice(content);
    event.into()
}

fn strangers() -> Snapshot {
    let state = |number| ContainerState { container_id: format!("{number:032x}"), ..Default::default() };
    Snapshot { containers: (0..MAX_CONTAINERS).map(state).collect() }
}

fn once(message: Bytes) -> BoxStream<Bytes> {
    Box::pin(tokio_stream::once(Ok(message)))
}

fn endless(message: Bytes) -> BoxStream<Bytes> {
    Box::pin(tokio_stream::iter(repeat(Ok(message))))
}

/// After an empty snapshot, the same end again and again, of the last container that was made.
fn failed_starts(agent: Arc<FakeAgent>) -> BoxStream<Bytes> {
    let failures = futures_util::stream::unfold(agent, |agent| async move {
        loop {
            if let Some(container_id) = agent.last_made() {
                let exit = Some(ProcessExit::default());
                let state =
                    ContainerState { container_id, state: State::Exited.into(), exit, ..Default::default() };
                return Some((Ok(event(2, &state.encode_to_vec())), agent));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    Box::pin(once(event(1, &[])).chain(failures))
}

/// The services in a guest: an attack's answers, and those of the agent for all other calls.
#[derive(Clone)]
pub struct Guest {
    agent: Arc<FakeAgent>,
    honest: AgentServer<FakeAgent>,
}

impl Guest {
    pub fn new(agent: Arc<FakeAgent>) -> Self {
        Self { honest: AgentServer::from_arc(Arc::clone(&agent)), agent }
    }
}

impl NamedService for Guest {
    const NAME: &'static str = AgentServer::<FakeAgent>::NAME;
}

impl Service<http::Request<Body>> for Guest {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let attack = self.agent.attack();
        let Some(answers) = attack.and_then(|attack| attack.answers(method, &self.agent)) else {
            return self.honest.call(request);
        };
        Box::pin(async move {
            let mut answers = Some(answers);
            let answer = service_fn(move |_: Request<()>| {
                let answers = answers.take().expect("one request is one call");
                ready(Ok::<_, Status>(Response::new(answers)))
            });
            // One message of a stream is, in bytes, what a call without one answers.
            Ok(Grpc::new(Verbatim).server_streaming(answer, request).await)
        })
    }
}

/// Sends bytes as they are, and does not look at what comes.
#[derive(Clone, Copy)]
struct Verbatim;

impl Codec for Verbatim {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Verbatim {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}
