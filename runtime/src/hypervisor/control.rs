//! The client of a VMM's control socket: one JSON message per packet, descriptors beside it, one answer to each.
//!
//! Used by `vm` and `files`. A VMM may be in the hands of its guest: answers are bounded, checked and have a
//! deadline.

use super::{HypervisorError, sys};
use crate::hostile_text;
use isopod_protocols::vmm::{ErrorKind, MAX_MESSAGE, Request, Response};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
    recv, sendmsg, socket, socketpair,
};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Binds a listening control socket for a new VMM.
pub fn listener(path: &Path) -> io::Result<OwnedFd> {
    // Blocking, as the VMM expects it.
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(8)?)?;
    Ok(socket)
}

/// Asks a VMM. The connection is made when it is needed, and thrown away after a failure: an answer that comes late must
/// not be taken for the answer to a later question.
pub struct Control {
    id: String,
    path: PathBuf,
    connection: Mutex<Option<AsyncFd<OwnedFd>>>,
}

impl Control {
    /// A client of the VMM `id` at `path`; it connects later.
    pub fn new(id: &str, path: PathBuf) -> Self {
        Self { id: id.to_owned(), path, connection: Mutex::new(None) }
    }

    /// Sends `request` with descriptors and takes its answer, both within `limit`.
    ///
    /// # Errors
    /// [`HypervisorError::Refused`] for an error answer, [`HypervisorError::Control`] for a broken connection.
    pub async fn ask(
        &self,
        name: &'static str,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Response, HypervisorError> {
        let failed = |source| HypervisorError::Control { id: self.id.clone(), request: name, source };
        let mut connection = self.connection.lock().await;
        let socket = match connection.take() {
            Some(socket) => socket,
            None => connect_to(&self.path).map_err(failed)?,
        };
        let answer = tokio::time::timeout(limit, exchange(&socket, request, descriptors)).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        *connection = Some(socket);
        self.accept(name, answer)
    }

    /// Answers an answer that is none of an error.
    fn accept(&self, name: &'static str, answer: Response) -> Result<Response, HypervisorError> {
        match answer {
            Response::Error { kind, message } => Err(self.refused(name, kind, &message)),
            answer => Ok(answer),
        }
    }

    /// The error of an answer of the wrong kind.
    pub fn unexpected(&self, name: &'static str) -> HypervisorError {
        HypervisorError::Unexpected { id: self.id.clone(), request: name }
    }

    fn refused(&self, request: &'static str, kind: ErrorKind, message: &str) -> HypervisorError {
        let message = hostile_text::message(message);
        HypervisorError::Refused { id: self.id.clone(), request, kind, message }
    }
}

/// What the daemon makes of a packet that a VMM answered.
///
/// # Errors
/// As [`Control::ask`].
#[cfg(any(test, feature = "testing"))]
pub fn read_answer(packet: &[u8]) -> Result<Response, HypervisorError> {
    let control = Control::new("v", PathBuf::new());
    let failed = |source| HypervisorError::Control { id: control.id.clone(), request: "fuzz", source };
    control.accept("fuzz", decode(packet).map_err(failed)?)
}

fn connect_to(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    sys::awaitable(socket, Interest::READABLE | Interest::WRITABLE)
}

async fn exchange(
    socket: &AsyncFd<OwnedFd>,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Response> {
    let packet = serde_json::to_vec(request)?;
    if packet.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the request is longer than the socket takes",
        ));
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let beside = [ControlMessage::ScmRights(&raw)];
    let beside = if raw.is_empty() { &beside[..0] } else { &beside[..] };
    socket
        .async_io(Interest::WRITABLE, |socket| {
            let parts = [IoSlice::new(&packet)];
            Ok(sendmsg::<()>(socket.as_raw_fd(), &parts, beside, MsgFlags::MSG_NOSIGNAL, None)?)
        })
        .await?;
    let answer = receive(socket, MAX_MESSAGE).await?;
    decode(&answer)
}

/// The answer in a packet. What is wrong with one may quote all of it, and is printable and cut like a VMM's
/// own words.
fn decode(packet: &[u8]) -> io::Result<Response> {
    serde_json::from_slice(packet).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, hostile_text::message(&error.to_string()))
    })
}

/// One packet of at most `limit` bytes. Descriptors beside it are not taken, so the kernel closes them.
async fn receive(socket: &AsyncFd<OwnedFd>, limit: usize) -> io::Result<Vec<u8>> {
    // One byte more than allowed, so that a longer packet shows.
    let mut packet = vec![0; limit + 1];
    let length = socket
        .async_io(Interest::READABLE, |socket| {
            Ok(recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)?)
        })
        .await?;
    match length {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length if length > limit => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long")),
        length => {
            packet.truncate(length);
            Ok(packet)
        }
    }
}

/// Where a guest's connections to one host port arrive (`Request::ListenVsock`).
pub struct GuestConnections {
    socket: AsyncFd<OwnedFd>,
}

impl GuestConnections {
    /// The receiving end, and the descriptor for the VMM.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, FLAGS)?;
        Ok((Self { socket: sys::awaitable(ours, Interest::READABLE)? }, theirs))
    }

    /// Waits for a connection to `port`, the ready signal of an agent, and closes it.
    pub async fn ready(&self, port: u32) -> io::Result<()> {
        loop {
            if receive(&self.socket, 4).await? == port.to_le_bytes() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::accept;
    use proptest::prelude::*;
    use std::os::fd::{AsFd, FromRawFd};

    const LIMIT: Duration = Duration::from_millis(300);

    /// A VMM that answers one packet per element, and `None` with silence.
    fn vmm(answers: Vec<Option<Vec<u8>>>) -> (tempfile::TempDir, Control) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        let listening = listener(&path).unwrap();
        std::thread::spawn(move || {
            let mut client: Option<std::fs::File> = None;
            for answer in answers {
                let mut buffer = vec![0; MAX_MESSAGE];
                let mut read = 0;
                while read == 0 {
                    let socket = client.get_or_insert_with(|| accepted(&listening));
                    read = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
                    if read == 0 {
                        client = None;
                    }
                }
                if let (Some(answer), Some(socket)) = (answer, &client) {
                    nix::unistd::write(socket, &answer).unwrap();
                }
            }
        });
        (directory, Control::new("v", path))
    }

    #[allow(unsafe_code)]
    fn accepted(listening: &OwnedFd) -> std::fs::File {
        let fd = accept(listening.as_raw_fd()).unwrap();
        // SAFETY: accept has just made this descriptor, and nobody else owns it.
        unsafe { std::fs::File::from_raw_fd(fd) }
    }

    fn done() -> Option<Vec<u8>> {
        Some(serde_json::to_vec(&Response::Done {}).unwrap())
    }

    #[tokio::test]
    async fn answer_comes_back_and_the_connection_is_kept() {
        let (_directory, control) = vmm(vec![done(), done()]);
        let null = std::fs::File::open("/dev/null").unwrap();
        for _ in 0..2 {
            let answer = control.ask("attach_tap", &Request::AttachTap {}, &[null.as_fd()], LIMIT).await;
            assert_eq!(answer.unwrap(), Response::Done {});
        }
    }

    #[tokio::test]
    async fn silent_vmm_is_a_timeout_and_the_next_question_gets_its_own_answer() {
        let (_directory, control) = vmm(vec![None, done()]);
        let error = control.ask("stats", &Request::Stats {}, &[], LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
        assert_eq!(control.ask("stop", &Request::Stop {}, &[], LIMIT).await.unwrap(), Response::Done {});
    }

    #[tokio::test]
    async fn answer_that_is_too_long_or_no_answer_is_refused() {
        let (_directory, control) = vmm(vec![Some(vec![b'x'; 70_000]), Some(b"{}".to_vec())]);
        for _ in 0..2 {
            let error = control.ask("stats", &Request::Stats {}, &[], LIMIT).await.unwrap_err();
            assert!(matches!(error, HypervisorError::Control { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn answer_that_cannot_be_read_is_quoted_short() {
        let answer = format!(r#"{{"response":"{}\u202e"}}"#, "no such answer ".repeat(4000));
        let (_directory, control) = vmm(vec![Some(answer.into_bytes())]);
        let error = control.ask("stats", &Request::Stats {}, &[], LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("no such answer") && error.len() < 1200, "{} bytes: {error}", error.len());
    }

    proptest! {
        #[test]
        fn any_packet_is_an_answer_or_a_bounded_error(packet in packets()) {
            if let Err(error) = read_answer(&packet) {
                let text = error.to_string();
                prop_assert!(text.len() < 1200 && !text.contains(char::is_control), "{}", text);
            }
        }
    }

    /// Any bytes, and refusals of any words.
    fn packets() -> impl Strategy<Value = Vec<u8>> {
        let refusal = "[\\PC\n\u{1b}\u{202e}]{0,3000}".prop_map(|message| {
            let refusal = Response::Error { kind: ErrorKind::State, message };
            serde_json::to_vec(&refusal).unwrap()
        });
        prop_oneof![prop::collection::vec(any::<u8>(), 0..300), refusal]
    }

    #[tokio::test]
    async fn refusal_is_printable() {
        let refusal = Response::Error { kind: ErrorKind::State, message: "no\u{1b}[2J".into() };
        let (_directory, control) = vmm(vec![Some(serde_json::to_vec(&refusal).unwrap())]);
        let error = control.ask("stats", &Request::Stats {}, &[], LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), r"vmm of v refused stats: no\u{1b}[2J");
    }

    #[tokio::test]
    async fn ready_signal_of_an_agent_is_received() {
        let (connections, vmm) = GuestConnections::new().unwrap();
        nix::unistd::write(&vmm, &9u32.to_le_bytes()).unwrap();
        nix::unistd::write(&vmm, &7u32.to_le_bytes()).unwrap();
        connections.ready(7).await.unwrap();
        drop(vmm);
        assert!(connections.ready(7).await.is_err());
    }
}
