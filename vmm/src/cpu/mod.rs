//! Virtual processors as KVM sees them: what they claim to be ([`cpuid`]), their registers and first page tables when the
//! kernel's first instruction runs ([`registers`]), and all of their state once they are stopped ([`state`]).

pub mod cpuid;
pub mod registers;
pub mod state;
