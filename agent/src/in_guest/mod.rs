//! Cases that need a guest: the agent's own calls, made from inside by a test program that is PID 1 of a virtual machine.
//!
//! `agent/in-guest/run` builds the machine and starts it. No host takes part: calls are made as functions, streams are
//! served over socket pairs. What comes between host and guest is the business of the end-to-end cases.

mod cases;
mod guest;

use crate::{init, sandbox};
use futures_util::FutureExt;
use guest::Guest;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// Longest case.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
#[ignore = "must be PID 1 of a guest: agent/in-guest/run"]
fn in_guest() {
    assert_eq!(std::process::id(), 1, "run it by agent/in-guest/run");
    init::set_up_guest().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let failed = runtime.block_on(run());
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// Runs all cases whose name contains what the machine was asked for; answers the names of those that failed.
async fn run() -> Vec<&'static str> {
    let wanted = std::env::var("ISOPOD_CASES").unwrap_or_default();
    let guest = Guest::set_up().await;
    let mut failed = Vec::new();
    for (name, case) in cases::all() {
        if !name.contains(&wanted) {
            continue;
        }
        let before = guest.what_exists();
        let started = Instant::now();
        let result =
            tokio::time::timeout(DEADLINE, AssertUnwindSafe(case(guest.clone())).catch_unwind()).await;
        guest.remove_all().await;
        let left = guest.what_is_new(&before).await;
        let verdict = match result {
            Ok(Ok(())) if left.is_empty() => "ok".to_owned(),
            Ok(Ok(())) => format!("LEFT BEHIND {left:#?}"),
            Ok(Err(_)) => "FAILED".to_owned(),
            Err(_) => "LATE".to_owned(),
        };
        println!("case {name} ... {verdict} ({} ms)", started.elapsed().as_millis());
        if verdict != "ok" {
            failed.push(name);
        }
    }
    failed
}

/// What a sandbox is told first; nothing of it matters to containers.
fn identity() -> isopod_protocols::agent::SetUpSandboxRequest {
    isopod_protocols::agent::SetUpSandboxRequest {
        sandbox_id: "s1".to_owned(),
        hostname: "guest".to_owned(),
        realtime_ns: 1_700_000_000_000_000_000,
        ..Default::default()
    }
}
