//! `make bench`: Isopod beside containerd + runc and QEMU microvm, in one run.
//!
//! On the machine it boots a node for each clock, runs itself in it, and puts together what they measured; in the node it
//! measures. The table goes to standard output, the same rows to `target/bench/report.json`.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use isopod_tests::artefacts::{self, Artefacts};
use isopod_tests::bench::report::{self, Clock, Row};
use isopod_tests::bench::{self, Counts, Part};
use isopod_tests::node::{Isopod, Job, Node, Settings, Time};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Measures Isopod beside its peers, each in the same node and run.
#[derive(Parser)]
struct Arguments {
    /// The clocks to measure by; a node for each.
    #[arg(long, value_delimiter = ',', default_value = "wall,icount")]
    clock: Vec<Clock>,
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_value = "boot,clones,pods,layers,return,net,pull,crowd,many")]
    only: Vec<Part>,
    /// Few samples: to see that it works, not for figures.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match std::env::var_os("ISOPOD_IN_NODE") {
        Some(_) => in_node(&arguments),
        None => on_machine(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn in_node(arguments: &Arguments) -> Result<ExitCode> {
    let out = std::env::var_os("ISOPOD_OUT").context("ISOPOD_OUT is not set")?;
    for &clock in &arguments.clock {
        let counts = match clock {
            _ if arguments.quick => Counts::QUICK,
            Clock::Wall => Counts::WALL,
            Clock::Icount => Counts::ICOUNT,
        };
        bench::measure(clock, &arguments.only, &counts, Path::new(&out))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn on_machine(arguments: &Arguments) -> Result<ExitCode> {
    let results = artefacts::target().join("bench");
    fs::create_dir_all(&results).with_context(|| format!("cannot make {}", results.display()))?;
    let (begin, mut rows, mut whole) = (Instant::now(), Vec::new(), true);
    for &clock in &arguments.clock {
        println!("== by the {clock} clock: starting a node with Isopod, containerd and a registry");
        let out = results.join(clock.to_string());
        if let Err(error) = run_node(arguments, clock, &out) {
            eprintln!("error: {error:#}");
            whole = false;
        }
        // a node that failed may have measured something before
        let measured = report::read(&out.join("rows.json")).unwrap_or_default();
        let missing = bench::missing(&measured, &arguments.only, clock);
        rows.extend(measured.into_iter().chain(missing));
    }
    report::write(&results.join("report.json"), &rows)?;
    show(&rows, &arguments.clock, &results);
    println!(
        "\nTook {} s; the rows are in {}",
        begin.elapsed().as_secs(),
        results.join("report.json").display()
    );
    whole &= rows.iter().all(Row::is_whole);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures in a node, which leaves its rows and phases in `out`.
fn run_node(arguments: &Arguments, clock: Clock, out: &Path) -> Result<()> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let settings = Settings {
        time: match clock {
            Clock::Wall => Time::Wall,
            Clock::Icount => Time::Counted,
        },
        memory_mib: 8192,
        isopod: Isopod::Serving,
        registry: true,
        debian: arguments.only.contains(&Part::Pull),
        near: true,
        pinned_kernel: true,
        timeout: Duration::from_secs(3600),
        out: Some(out.to_owned()),
        ..Settings::default()
    };
    let status =
        Node::start(settings, &Job { command: command(arguments, clock)?, terminal: false })?.wait()?;
    anyhow::ensure!(status == 0, "the measuring program in the node exited with {status}");
    Ok(())
}

/// This program again, told of one clock, and of the copies that lie in the node's tmpfs.
fn command(arguments: &Arguments, clock: Clock) -> Result<Vec<OsString>> {
    let mut command: Vec<OsString> = vec!["env".into()];
    let mut cache = OsString::from("ISOPOD_CACHE=");
    cache.push(artefacts::cache()?);
    command.push(cache);
    for (name, path) in Artefacts::installed_in_node() {
        command.push(format!("{name}={path}").into());
    }
    command.push(std::env::current_exe()?.into_os_string());
    let clock = clock.to_string();
    let only: Vec<String> = arguments
        .only
        .iter()
        .filter_map(ValueEnum::to_possible_value)
        .map(|part| part.get_name().to_owned())
        .collect();
    command.extend(["--clock", &clock, "--only", &only.join(",")].map(OsString::from));
    if arguments.quick {
        command.push("--quick".into());
    }
    Ok(command)
}

fn show(rows: &[Row], clocks: &[Clock], results: &Path) {
    println!("\n{}", report::table(rows));
    for clock in clocks {
        let phases: PathBuf = results.join(clock.to_string()).join("phases.txt");
        if let Ok(phases) = fs::read_to_string(phases) {
            println!("Where the time of Isopod's last pod start went, by the {clock} clock:\n\n{phases}");
        }
    }
}
