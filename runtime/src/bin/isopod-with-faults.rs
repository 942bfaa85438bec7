//! `isopod` for the failure tests: its operations fail, or the process dies, after the steps that a test
//! orders. The environment variable `ISOPOD_FAULT_FILE` names the file with the order, see [`Fault`].
//!
//! Nobody installs it. `isopod` is another program so that it has no way to faults at all: only this one
//! reads the variable.

use isopod_runtime::undo::Fault;

fn main() -> anyhow::Result<std::process::ExitCode> {
    if let Some(file) = std::env::var_os("ISOPOD_FAULT_FILE") {
        Fault::look_in(file.into());
    }
    isopod_runtime::command::run()
}
