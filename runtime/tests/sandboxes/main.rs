//! Sandboxes from start to removal, on a fake hypervisor, fake networks and a fake agent: no root, no KVM.
//!
//! `fakes` is the node they live on; `faults` fails a start at every step in turn; `hostile` has agents
//! attack the daemon.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod containers;
mod fakes;
mod faults;
mod growth;
mod hostile;
mod hostile_agent;
mod hostile_frames;
mod lifecycle;
mod restart;
mod rpcs;
mod stats;
