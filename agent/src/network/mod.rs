//! The guest's network: the request's interface as checked types ([`link`]), and its making ([`netlink`]).

mod address;
mod field;
mod link;
pub mod netlink;
mod route;
mod rule;

pub use field::LinkError;
pub use link::Link;
