//! Sandboxes from start to removal, on a fake hypervisor, fake networks and a fake agent: no root, no KVM.
//!
//! `fakes` is the node they live on; `faults` fails a start at every step in turn.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fakes;
mod faults;
mod growth;
mod lifecycle;
mod restart;
