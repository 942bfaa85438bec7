//! The program `isopod`, as it is released.

fn main() -> anyhow::Result<std::process::ExitCode> {
    isopod_runtime::command::run()
}
