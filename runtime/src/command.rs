//! The command line: `serve` is the daemon, `check` tells whether this machine can run it.
//!
//! Called by the programs in `bin`, and all that they have in common. It must not know of faults that tests
//! order.

use crate::config::Config;
use crate::image::worker;
use crate::{check, trace};
use anyhow::{Context, Result};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Time that files under way have to be written when the daemon goes down.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Every Kubernetes pod in its own light KVM virtual machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; its drop-ins are in the directory of its name with ".d" appended.
    #[arg(long, global = true, default_value = "/etc/isopod/config.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Serve the CRI on a unix socket.
    Serve,
    /// Tell whether this machine can run pods, and what to do where it cannot. Exit code 0: it can; 1: it
    /// cannot.
    Check,
    /// Print where the time of the last pod start went.
    Phases,
}

/// Does what the process's arguments say, and answers its exit code.
///
/// # Errors
/// A configuration that cannot be used, and whatever kept the daemon from serving.
pub fn run() -> Result<ExitCode> {
    worker::run_if_asked();
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    match arguments.command {
        Command::Serve => serve(config),
        Command::Check => check(&config),
        Command::Phases => phases(&config),
    }
}

fn serve(config: Config) -> Result<ExitCode> {
    trace::start(&config.daemon).context("daemon.log_filter")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.daemon.worker_threads.max(1))
        .enable_all()
        .build()?;
    let served = runtime.block_on(crate::serve::serve(config));
    // Files are written by threads that wait for their disk, which may take no writes any more.
    runtime.shutdown_timeout(LAST_WRITES);
    served?;
    Ok(ExitCode::SUCCESS)
}

fn phases(config: &Config) -> Result<ExitCode> {
    let directory = &config.daemon.state_dir;
    let operations = trace::recorded(directory)
        .with_context(|| format!("no phases in {}: no pod was started yet", directory.display()))?;
    print!("{}", trace::table(&operations));
    Ok(ExitCode::SUCCESS)
}

fn check(config: &Config) -> Result<ExitCode> {
    let findings = check::examine(config);
    print!("{}", check::table(&findings));
    Ok(if check::passed(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
