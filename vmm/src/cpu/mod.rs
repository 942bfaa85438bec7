//! The state a virtual processor has when the kernel's first instruction runs: what it claims to be ([`cpuid`]), and
//! its registers and first page tables ([`registers`]). Called by the builder.

pub mod cpuid;
pub mod registers;
