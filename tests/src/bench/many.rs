//! `pod_start_at_200`: what a pod's start takes beside 200 others, against what it takes beside one.
//!
//! Isopod alone: what grows with the number of pods (tables, lists, rules, idle guests) shows here. The first
//! figure stands where the peer's stands in other rows.

use super::report::{Clock, Row};
use super::side::Side;
use super::statistics::Samples;
use super::{Counts, crowd, memory, phases, pods};
use anyhow::Result;

/// How the reports call what 200 are compared with.
pub const PEER: &str = "Isopod, 1 pod alive";

/// How many pods are asked for at a time on the way to all of them.
const BATCH: usize = 50;

/// Starts pods beside one, then beside many, which stay: this is the last part, and they go with the node.
pub fn measure(isopod: &mut Side<'_>, counts: &Counts, clock: Clock) -> Vec<Row> {
    let few = isopod.run("starts beside one pod", |side| beside(side, 0..1, counts.beside));
    let many = isopod.run("starts beside many pods", |side| beside(side, 1..counts.many, counts.beside));
    let [few, many] = [few, many].map(Option::unwrap_or_default);
    println!("  start beside 1: {few}; beside {}: {many} ms", counts.many);
    let n = few.count().max(many.count());
    vec![Row::new(("pod_start_at_200", "ms"), (many.median(), few.median()), PEER, n, clock)]
}

/// Adds pods of these numbers to those that are alive, and when they are idle takes the time of some starts
/// beside them; tells where the time of the last went.
fn beside(side: &Side<'_>, numbers: std::ops::Range<usize>, starts: usize) -> Result<Samples> {
    for from in numbers.clone().step_by(BATCH) {
        crowd::start(side, "many", from..numbers.end.min(from + BATCH))?;
    }
    std::thread::sleep(memory::UNTIL_IDLE);
    let took = pods::starts(side, "beside", starts)?;
    println!("  the last of {took} ms beside {}:\n{}", numbers.end, phases()?);
    Ok(took)
}
