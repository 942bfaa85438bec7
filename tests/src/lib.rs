//! End-to-end tests of Isopod and what they run in: the [`node`], a throw-away virtual machine with real KVM.
//!
//! Nothing here is part of the product. The programs under test are started as users start them and are only ever reached
//! by their sockets, files and command lines.

pub mod agent;
pub mod artefacts;
pub mod bench;
pub mod case;
pub mod cri;
pub mod daemon;
pub mod held;
pub mod image;
pub mod kvm_counters;
pub mod node;
pub mod node_programs;
pub mod registry;
pub mod script_guest;
pub mod template;
pub mod templates;
pub mod vmm;
