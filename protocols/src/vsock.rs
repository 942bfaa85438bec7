//! Addresses on the virtual socket between host and guest (virtio 1.3, section 5.10), and the handshake on the unix
//! socket by which host programs reach it.
//!
//! Host to guest: connect to the VMM's vsock unix socket, send `CONNECT <port>\n`, read `OK <host port>\n`, and the
//! stream is the guest's. Guest to host: only ports that were announced with [`crate::vmm::Request::ListenVsock`] answer.

/// Context id of every guest. All may have the same one: the vsock device lives in the VMM, so ids never meet.
pub const GUEST_CID: u32 = 3;

/// Context id by which a guest reaches the host.
pub const HOST_CID: u32 = 2;

/// Guest port of the agent's gRPC service.
pub const AGENT_PORT: u32 = 1024;

/// Guest port that takes one connection per stdio stream, see [`crate::stdio`].
pub const STDIO_PORT: u32 = 1025;

/// Host port to which the agent connects once, when it serves both guest ports. The connection carries nothing.
pub const READY_PORT: u32 = 1026;

/// Longest handshake line, in bytes, including its newline.
pub const MAX_HANDSHAKE: usize = 32;
