//! Agents that attack the daemon by frames of HTTP/2 which belong to no answer: each costs little to send,
//! and none counts against what may have been sent of answers. They are written here as bytes, without an
//! encoder.

use isopod_protocols::vsock::AGENT_PORT;
use isopod_runtime::agent_client::AgentClient;
use isopod_runtime::hypervisor::fake::{Connection, FakeHypervisor};
use isopod_runtime::hypervisor::{Hypervisor, VmSpec};
use isopod_runtime::undo::Undo;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

/// Bytes a second that are read of an agent at most.
pub const RATE: f64 = (4 << 20) as f64;

/// Bytes that may be read at once, or lie in the buffers of the socket.
pub const AT_ONCE: f64 = (2 << 20) as f64;

/// What comes without end, after the first call and as far as it goes in place of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Pings, each of which is to be answered.
    Pings,
    /// Settings that set nothing, alike.
    Settings,
    /// Priorities of the call.
    Priorities,
    /// Heads of the answer that say another head will follow.
    ProvisionalHeads,
    /// Pieces of the answer that hold nothing.
    EmptyData,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

/// The call's number: that of the first one of a connection.
const CALL: u8 = 1;

/// A head of an answer with nothing but a status: a field that no table holds, whose name is the static
/// table's 8th.
const PROVISIONAL: &[u8] = b"\x08\x03100";

/// The static table's 8th, status 200.
const OK: &[u8] = b"\x88";

impl Flood {
    pub const ALL: [Self; 5] =
        [Self::Pings, Self::Settings, Self::Priorities, Self::ProvisionalHeads, Self::EmptyData];

    /// What comes once, and what comes again and again.
    fn frames(self) -> (Vec<u8>, Vec<u8>) {
        let settings = frame(SETTINGS, 0, 0, &[]);
        match self {
            Self::Pings => (settings, frame(PING, 0, 0, &[7; 8])),
            Self::Settings => (settings.clone(), settings),
            Self::Priorities => (settings, frame(PRIORITY, 0, CALL, &[0, 0, 0, 0, 1])),
            Self::ProvisionalHeads => (settings, head(PROVISIONAL)),
            Self::EmptyData => ([settings, head(OK)].concat(), frame(DATA, 0, CALL, &[])),
        }
    }
}

/// All of a head in one frame.
fn head(fields: &[u8]) -> Vec<u8> {
    const END_HEADERS: u8 = 4;
    frame(HEADERS, END_HEADERS, CALL, fields)
}

fn frame(kind: u8, flags: u8, call: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("frames here are short");
    [&[0, 0, length, kind, flags, 0, 0, 0, call], content].concat()
}

/// A client of an agent that does nothing else, and how many bytes of its frames have been taken.
pub async fn agent(flood: Flood) -> (AgentClient, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let hypervisor = FakeHypervisor::new(move |Connection { port, stream, .. }| {
        assert_eq!(port, AGENT_PORT);
        tokio::spawn(flood_connection(flood, stream, Arc::clone(&counted)));
    });
    let mut undo = Undo::new("hostile");
    let spec = VmSpec { id: "hostile".into(), ..VmSpec::new(Default::default()) };
    let vm = hypervisor.boot(&spec, &mut undo).await.unwrap().vm;
    undo.keep();
    (AgentClient::new("hostile", vm), sent)
}

/// Reads to the end of the first head of a call.
async fn read_to_call(requests: &mut OwnedReadHalf) -> io::Result<()> {
    const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
    requests.read_exact(&mut [0; PREFACE]).await?;
    loop {
        let mut start = [0; 9];
        requests.read_exact(&mut start).await?;
        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]);
        requests.read_exact(&mut vec![0; length as usize]).await?;
        if start[3] == HEADERS {
            return Ok(());
        }
    }
}

async fn flood_connection(flood: Flood, stream: UnixStream, sent: Arc<AtomicU64>) {
    let (mut requests, mut frames) = stream.into_split();
    // Frames of a call that is not there would end the connection.
    if read_to_call(&mut requests).await.is_err() {
        return;
    }
    // What the daemon answers is thrown away, so that it can answer more.
    tokio::spawn(async move { tokio::io::copy(&mut requests, &mut tokio::io::sink()).await });
    let (once, again) = flood.frames();
    let many = again.repeat(16 * 1024 / again.len());
    let mut piece = once;
    while frames.write_all(&piece).await.is_ok() {
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        piece.clone_from(&many);
    }
}
