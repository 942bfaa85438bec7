//! The control socket: packets in, one answer to each (see `isopod_protocols::vmm`).
//!
//! ```text
//!   main, before the VM runs:   Listener::first_request       blocks, with a deadline
//!   event loop, afterwards:     server.rs, by Listener::accept, Client::receive and Client::answer, none of
//!                               which blocks
//! ```
//!
//! Whatever a client sends, the worst that happens is an error answer, or that this client is dropped. This
//! file knows packets and descriptors; it must not know what a request means to a running VM.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use isopod_protocols::vmm::{BootConfig, ErrorKind, MAX_FDS, MAX_MESSAGE, Request, Response, Shape};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, SockFlag, accept4, recvmsg, send},
};

use crate::sys;

/// Most descriptors that the kernel passes in one message (`SCM_MAX_FD`). Room for all means none is lost unseen.
const KERNEL_MAX_FDS: usize = 253;

/// A VMM that nobody tells what to do ends after this time: its daemon has died between starting and using it.
const FIRST_BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// The request that makes the VM.
#[derive(Debug)]
pub enum FirstRequest {
    /// Boot a pod's VM.
    Boot(BootConfig),
    /// Boot a VM that is to become a template.
    BootTemplate(BootConfig),
    /// Clone a template that was made from this, and was booted as this machine.
    Restore(String, Shape),
}

impl fmt::Display for FirstRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, config) = match self {
            FirstRequest::Boot(config) => ("boot", config),
            FirstRequest::BootTemplate(config) => ("boot of a template", config),
            FirstRequest::Restore(built_from, _) => return write!(f, "clone of {built_from}"),
        };
        write!(f, "{what}, {} vcpus, {} MiB", config.vcpus, config.memory_mib)
    }
}

/// Why no boot request came.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A system call on the control socket failed.
    #[error("control socket: {call}")]
    Socket {
        /// The call.
        call: &'static str,
        /// The system's answer.
        source: Errno,
    },
    /// The client went away, and without a VM there is no reason to go on.
    #[error("the client left before it sent a boot request")]
    Abandoned,
    /// Nobody sent a boot request.
    #[error("no boot request within {} s", FIRST_BOOT_DEADLINE.as_secs())]
    Deadline,
    /// A client asked for the end.
    #[error("stopped by request before boot")]
    Stopped,
}

fn failed(call: &'static str) -> impl Fn(Errno) -> ControlError {
    move |source| ControlError::Socket { call, source }
}

/// What came from a client.
#[derive(Debug)]
pub enum Received {
    /// A request and its descriptors.
    Request(Request, Vec<OwnedFd>),
    /// Something else, and what is wrong with it.
    Malformed(String),
    /// Nothing yet.
    Nothing,
    /// The client left.
    Gone,
}

/// One connection to a client.
pub struct Client {
    socket: OwnedFd,
    /// Reused for every message.
    buffer: Vec<u8>,
}

impl Client {
    /// Serves a connected `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, buffer: vec![0; MAX_MESSAGE] }
    }

    /// The socket, to watch for messages.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Takes one message, without waiting.
    pub fn receive(&mut self) -> Received {
        let mut space = nix::cmsg_space!([RawFd; KERNEL_MAX_FDS]);
        let mut parts = [io::IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, flags, fds) =
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => (message.bytes, message.flags, descriptors(&message)),
                Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
                Err(_) => return Received::Gone,
            };
        // A packet of no bytes cannot be told from the end of the connection.
        if length == 0 {
            return Received::Gone;
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Received::Malformed(format!("message is longer than {MAX_MESSAGE} bytes"));
        }
        if flags.contains(MsgFlags::MSG_CTRUNC) || fds.len() > MAX_FDS {
            return Received::Malformed(format!("message has more than {MAX_FDS} descriptors"));
        }
        match serde_json::from_slice(&self.buffer[..length]) {
            Ok(request) => Received::Request(request, fds),
            Err(error) => Received::Malformed(format!("not a request: {error}")),
        }
    }

    /// Sends an answer, without waiting.
    ///
    /// # Errors
    /// When the client has gone, or does not read its answers.
    pub fn answer(&self, response: &Response) -> Result<(), Errno> {
        let bytes = serde_json::to_vec(response).expect("a response has only strings and numbers");
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), &bytes, flags).map(drop)
    }
}

/// Takes ownership of what came beside a message, so that all of it is closed on every path.
fn descriptors(message: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for part in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            fds.extend(numbers.into_iter().map(sys::own));
        }
    }
    fds
}

/// An error answer.
pub fn error(kind: ErrorKind, message: impl ToString) -> Response {
    Response::Error { kind, message: message.to_string() }
}

/// The listening socket.
pub struct Listener(OwnedFd);

impl Listener {
    /// Serves clients of a listening `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The socket, to watch for clients.
    pub fn socket(&self) -> &OwnedFd {
        &self.0
    }

    /// Takes the next client, if one waits.
    ///
    /// # Errors
    /// When the system refuses the connection's descriptor.
    pub fn accept(&self) -> Result<Option<Client>, Errno> {
        match accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(fd) => Ok(Some(Client::new(sys::own(fd)))),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for a client and for its request to make a VM, and answers all others with an error.
    pub fn first_request(&self) -> Result<(Client, FirstRequest, Vec<OwnedFd>), ControlError> {
        let deadline = Instant::now() + FIRST_BOOT_DEADLINE;
        let mut client = loop {
            wait(self.0.as_fd(), deadline)?;
            if let Some(client) = self.accept().map_err(failed("accept"))? {
                break client;
            }
        };
        loop {
            wait(client.socket.as_fd(), deadline)?;
            let answer = match client.receive() {
                Received::Request(Request::Boot(config), fds) => {
                    return Ok((client, FirstRequest::Boot(config), fds));
                }
                Received::Request(Request::BootTemplate(config), fds) => {
                    return Ok((client, FirstRequest::BootTemplate(config), fds));
                }
                Received::Request(Request::Restore { built_from, shape }, fds) => {
                    return Ok((client, FirstRequest::Restore(built_from, shape), fds));
                }
                Received::Request(Request::Stop {}, _) => {
                    // The end comes either way.
                    let _ = client.answer(&Response::Done {});
                    return Err(ControlError::Stopped);
                }
                Received::Request(..) => {
                    error(ErrorKind::State, "no vm yet: send a request to boot or restore one first")
                }
                Received::Malformed(what) => error(ErrorKind::Invalid, what),
                Received::Nothing => continue,
                Received::Gone => return Err(ControlError::Abandoned),
            };
            client.answer(&answer).map_err(|_| ControlError::Abandoned)?;
        }
    }
}

fn wait(fd: BorrowedFd<'_>, deadline: Instant) -> Result<(), ControlError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(ControlError::Deadline),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(failed("poll")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, ControlMessage, SockType, sendmsg, socketpair};
    use proptest::prelude::*;
    use std::io::{IoSlice, Write};

    fn pair() -> (Client, OwnedFd) {
        let (near, far) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Client::new(near), far)
    }

    fn send_with(far: &OwnedFd, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let beside = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg::<()>(far.as_raw_fd(), &[IoSlice::new(bytes)], beside, MsgFlags::empty(), None).unwrap();
    }

    fn malformed(received: Received) -> String {
        match received {
            Received::Malformed(what) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn request_arrives_with_its_descriptors_in_order() {
        let (mut client, far) = pair();
        let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, file) in files.iter().enumerate() {
            (&mut &*file).write_all(&[number as u8; 4][..=number]).unwrap();
        }
        let request = Request::AttachExtent { length: 4096, read_only: true };
        let fds: Vec<_> = files.iter().map(|f| f.as_raw_fd()).collect();
        send_with(&far, &serde_json::to_vec(&request).unwrap(), &fds);

        let Received::Request(received, fds) = client.receive() else { panic!("no request") };
        assert_eq!(received, request);
        let sizes: Vec<_> =
            fds.into_iter().map(|fd| std::fs::File::from(fd).metadata().unwrap().len()).collect();
        assert_eq!(sizes, [1, 2, 3]);
    }

    #[test]
    fn answer_arrives_as_one_packet() {
        let (client, far) = pair();
        let response = Response::Console { text: "x".repeat(16 * 1024) };
        client.answer(&response).unwrap();
        let mut buffer = vec![0; MAX_MESSAGE];
        let length = nix::unistd::read(&far, &mut buffer).unwrap();
        assert_eq!(serde_json::from_slice::<Response>(&buffer[..length]).unwrap(), response);
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (mut client, far) = pair();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send_with(&far, br#"{"request":"stats"}"#, &[writer.as_raw_fd(); MAX_FDS + 1]);
        drop(writer);
        assert!(malformed(client.receive()).contains("descriptors"));
        let end = nix::unistd::read(&reader, &mut [0]).unwrap();
        assert_eq!(end, 0, "a copy of the pipe is still open");
    }

    #[test]
    fn too_long_a_message_is_refused_and_the_next_one_is_served() {
        let (mut client, far) = pair();
        send_with(&far, &vec![b' '; MAX_MESSAGE + 1], &[]);
        assert!(malformed(client.receive()).contains("longer"));
        send_with(&far, br#"{"request":"stats"}"#, &[]);
        assert!(matches!(client.receive(), Received::Request(Request::Stats {}, _)));
    }

    #[test]
    fn unknown_requests_and_fields_are_refused() {
        let (mut client, far) = pair();
        let bad = [&b"{}"[..], br#"{"request":"fly"}"#, br#"{"request":"stop","now":1}"#, b"\xff\0", b"null"];
        for message in bad {
            send_with(&far, message, &[]);
            malformed(client.receive());
        }
    }

    #[test]
    fn client_that_left_is_gone() {
        let (mut client, far) = pair();
        assert!(matches!(client.receive(), Received::Nothing));
        drop(far);
        assert!(matches!(client.receive(), Received::Gone));
        assert!(client.answer(&Response::Done {}).is_err());
    }

    #[test]
    fn client_that_does_not_read_is_found_out() {
        let (client, _far) = pair();
        let response = Response::Console { text: "x".repeat(16 * 1024) };
        let mut answers = 0;
        while client.answer(&response).is_ok() {
            answers += 1;
            assert!(answers < 10_000, "answers pile up");
        }
    }

    proptest! {
        #[test]
        fn any_packet_is_a_request_or_malformed(bytes in prop::collection::vec(any::<u8>(), 1..2048)) {
            let (mut client, far) = pair();
            send_with(&far, &bytes, &[]);
            prop_assert!(matches!(client.receive(), Received::Request(..) | Received::Malformed(_)));
        }

        /// Packets that are nearly requests reach further into the parser than random bytes.
        #[test]
        fn damaged_request_is_a_request_or_malformed(place in 0_usize..210, byte in any::<u8>()) {
            let config = BootConfig {
                vcpus: 2,
                max_vcpus: 2,
                memory_mib: 128,
                max_memory_mib: 256,
                huge_pages: true,
                nested_virtualization: false,
                kernel_args: vec!["a".into()],
            };
            let mut bytes = serde_json::to_vec(&Request::Boot(config)).unwrap();
            let place = place % bytes.len();
            bytes[place] = byte;
            let (mut client, far) = pair();
            send_with(&far, &bytes, &[]);
            prop_assert!(matches!(client.receive(), Received::Request(..) | Received::Malformed(_)));
        }
    }
}
