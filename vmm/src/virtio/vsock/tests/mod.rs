//! The vsock device between a guest made of packets and host programs made of threads-free unix streams.

mod guest;
mod properties;
mod stories;
