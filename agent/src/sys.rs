//! System calls that no crate offers safely. The only file of the agent with unsafe code.
#![allow(unsafe_code)]
