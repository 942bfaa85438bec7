//! The CRI of Kubernetes 1.37, `runtime.v1`: all of its messages under one path, and its two services.
//!
//! A message that the `k8s-cri` crate has as it is published is the crate's type. The others and the services
//! are generated from `proto/cri.proto`. Users need not know which is which; every message is decoded once,
//! with all fields.

mod environment_value;
#[cfg(test)]
mod tests;

pub use generated::*;

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    use super::environment_value;

    include!(concat!(env!("OUT_DIR"), "/cri_unchanged.rs"));
    tonic::include_proto!("runtime.v1");
}
