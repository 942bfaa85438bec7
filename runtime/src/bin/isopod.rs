//! The command `isopod`: `serve` is the daemon, `check` tells whether this machine can run it.

use anyhow::{Context, Result};
use clap::Parser;
use isopod_runtime::config::Config;
use isopod_runtime::trace;
use std::path::PathBuf;

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
    /// Print where the time of the last pod start went.
    Phases,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    match arguments.command {
        Command::Serve => serve(config),
        Command::Phases => phases(&config),
    }
}

fn serve(config: Config) -> Result<()> {
    trace::start(&config.daemon).context("daemon.log_filter")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.daemon.worker_threads.max(1))
        .enable_all()
        .build()?;
    runtime.block_on(isopod_runtime::serve::serve(config))?;
    Ok(())
}

fn phases(config: &Config) -> Result<()> {
    let directory = &config.daemon.state_dir;
    let operations = trace::recorded(directory)
        .with_context(|| format!("no phases in {}: no pod was started yet", directory.display()))?;
    print!("{}", trace::table(&operations));
    Ok(())
}
