//! System calls and ioctls that no crate offers safely: the only folder of the agent with unsafe code.
//!
//! Called by whoever needs one of them. It knows nothing of containers or requests, and nothing of the
//! agent's other modules.

pub mod bpf;
pub mod descriptor;
pub mod device_mapper;
pub mod entropy;
pub mod exec;
pub mod kernel;
pub mod process;
pub mod terminal;
