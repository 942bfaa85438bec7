//! Containers: made, started, limited and removed, and the processes in them.
//!
//! | module | |
//! |---|---|
//! | [`table`] | the containers that there are, and what is known of each |
//! | [`state`] | the states of all containers, with their diagram, and who watches them |
//! | `create`, `start`, `update`, `remove` | one call on a container each |
//! | `exec`, `processes` | calls on processes: execs made and removed; wait, signal, terminal size |
//! | [`spec`] | the runtime's OCI spec, completed and checked; pure |
//! | [`targets`] | places of mounts and working directory in the root |
//! | [`pid_namespace`] | the pid namespace that containers of the pod may share |
//! | [`namespaces`] | the namespaces of a container, which its execs enter |
//! | [`launch`] | starts the one-shot child ([`crate::child`]) and takes over what it makes |
//!
//! Called by the server alone. Create, start, update and remove of one container never overlap: each holds
//! [`table::Container`]'s `step`. Calls run to their end even when the caller has gone away, so nothing is
//! left half done.

mod create;
mod error;
mod exec;
mod launch;
mod namespaces;
mod pid_namespace;
mod processes;
mod remove;
mod spec;
mod start;
mod state;
mod table;
mod targets;
mod update;

pub use create::create;
pub use error::ContainerError;
pub use exec::{remove_exec, start_exec};
pub use launch::LaunchError;
pub use processes::{ProcessError, resize_terminal, signal, wait};
pub use remove::remove;
pub use start::start;
pub use state::{ContainerStates, StateError};
pub use table::Containers;
pub use update::update;
