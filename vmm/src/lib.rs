//! Placeholder.

pub mod bus;
pub mod virtio;
