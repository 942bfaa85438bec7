//! The command `isopod`: `serve` is the daemon, `check` tells whether this machine can run it.

use anyhow::Result;
use clap::Parser;
use std::path::PathBuf;

/// Every Kubernetes pod in its own light KVM virtual machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Serve the CRI on a unix socket.
    Serve {
        /// The configuration file.
        #[arg(long, default_value = "/etc/isopod/config.toml")]
        config: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Serve { config } => {
            let _config = isopod_runtime::config::Config::load(&config)?;
            anyhow::bail!("serve: the hypervisor is not there yet")
        }
    }
}
