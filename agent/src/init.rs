//! PID 1: makes the guest fit to live in, then serves until the VM ends.

use crate::console;
use crate::sandbox::Sandbox;
use crate::server;
use std::process::ExitCode;
use std::sync::Arc;

/// The life of the agent. Never returns in a guest: an end of PID 1 would be a kernel panic, so the VM is powered off.
pub fn run() -> ExitCode {
    let sandbox = Arc::new(Sandbox::default());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            console::error!("event loop cannot be made: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = runtime.block_on(server::serve(sandbox)) {
        console::error!("agent cannot serve: {error}");
    }
    ExitCode::FAILURE
}
