//! The contracts between Isopod's programs. They meet only here: each program uses this crate and never another one.
//!
//! | module | between | carried by |
//! |---|---|---|
//! | [`agent`] | runtime and agent: sandbox, containers, processes, statistics, events | gRPC over vsock port [`vsock::AGENT_PORT`] |
//! | [`stdio`] | runtime and agent: the bytes of one stream of one process | a vsock connection each, port [`vsock::STDIO_PORT`] |
//! | [`vmm`] | runtime and VMM: boot, attach, detach, statistics, stop | JSON and file descriptors over a unix seqpacket socket |
//! | [`vsock`] | all: port numbers, and the one-line handshake on the VMM's vsock socket | |
//! | `cri`, with the feature of that name | kubelet and runtime: the CRI | gRPC on the CRI's socket |
//! | [`guest`] | runtime and agent: paths in the guest that both name, and limits that both hold | |

#[cfg(feature = "cri")]
pub mod cri;
pub mod guest;
pub mod stdio;
pub mod vmm;
pub mod vsock;

/// The agent's gRPC service and its messages, generated from `proto/agent.proto`, which documents them.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod agent {
    tonic::include_proto!("isopod.agent.v1");
}
