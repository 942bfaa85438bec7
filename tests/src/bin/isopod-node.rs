//! Runs a command, or an interactive shell, in a node.

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use isopod_tests::node::{Isopod, Job, Node, Settings, Time};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A throw-away virtual machine with real KVM that has this machine's files, read-only below a tmpfs.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command in a fresh node; exits with its status, with 125 if the node failed.
    Run {
        #[command(flatten)]
        node: NodeArguments,
        /// Seconds until the node is killed.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// Directory for the files that the command writes to $ISOPOD_OUT.
        #[arg(long)]
        out: Option<PathBuf>,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        job: Vec<OsString>,
    },
    /// An interactive shell in a fresh node.
    Shell {
        #[command(flatten)]
        node: NodeArguments,
    },
}

#[derive(Args)]
struct NodeArguments {
    /// Count instructions instead of time: the same figures on every run.
    #[arg(long)]
    icount: bool,
    /// A node without Isopod, for which nothing is built.
    #[arg(long)]
    no_daemon: bool,
    /// Install Isopod, crictl and a pod network, but do not start `isopod serve`.
    #[arg(long, conflicts_with = "no_daemon")]
    installed: bool,
    /// Start a container registry with the images of tests/images on 127.0.0.1:5000.
    #[arg(long)]
    registry: bool,
    /// With the image `debian` too, which takes minutes to build once.
    #[arg(long, requires = "registry")]
    debian: bool,
    /// CPUs of the node.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory of the node, in MiB.
    #[arg(long, default_value_t = 6144)]
    memory: u32,
}

impl NodeArguments {
    fn settings(&self) -> Settings {
        Settings {
            time: if self.icount { Time::Counted } else { Time::Wall },
            cpus: self.cpus,
            memory_mib: self.memory,
            isopod: match (self.no_daemon, self.installed) {
                (false, false) => Isopod::Serving,
                (_, true) => Isopod::Installed,
                (true, false) => Isopod::Absent,
            },
            registry: self.registry,
            debian: self.debian,
            near: self.icount,
            ..Settings::default()
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn run(command: Command) -> Result<u8> {
    let (settings, job) = match command {
        Command::Run { node, timeout, out, job } => {
            let settings = Settings { timeout: Duration::from_secs(timeout), out, ..node.settings() };
            (settings, Job { command: job, terminal: false })
        }
        Command::Shell { node } => {
            let a_working_day = Duration::from_secs(12 * 3600);
            let settings = Settings { timeout: a_working_day, ..node.settings() };
            (settings, Job { command: vec!["bash".into(), "-i".into()], terminal: true })
        }
    };
    Node::start(settings, &job)?.wait()
}
