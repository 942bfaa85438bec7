//! `layer_read`: a file in an image's root, read by a container: in order, and in 4 KiB pieces at random places.
//!
//! Each sample is a pod of its own, so that with Isopod the guest has nothing of the file in its memory and all of it comes
//! through the virtual disk. The node has all of it in memory, on both sides: this is the cost of the way, not of a disk.

use super::report::{Clock, Row};
use super::side::{Side, settle};
use super::statistics::Samples;
use super::{Counts, containerd};
use crate::cri::{container_config, pod_config};
use anyhow::{Context, Result};
use std::fs;

/// The ways of reading, as the image's `read-file` calls them, and their units.
const WAYS: [(&str, &str); 2] = [("sequential", SEQUENTIAL), ("random", RANDOM)];

/// The unit of reading in order.
pub const SEQUENTIAL: &str = "MiB/s sequential";

/// The unit of reading at random places.
pub const RANDOM: &str = "MiB/s random 4 KiB";

/// The file: 64 MiB.
const FILE: &str = "/data/large";

/// Reads on each side in turn.
pub fn measure(sides: &mut [Side<'_>; 2], counts: &Counts) -> Vec<Row> {
    WAYS.map(|(way, unit)| {
        let mut speeds = [Samples::default(), Samples::default()];
        // the first of each side finds the node's memory cold
        for round in 0..=counts.reads {
            for (side, speeds) in sides.iter_mut().zip(&mut speeds) {
                let speed = side.run("reading a layer", |side| read(side, way));
                if let Some(speed) = speed.filter(|_| round > 0) {
                    speeds.push(speed);
                }
            }
        }
        let [ours, peer] = speeds;
        println!("  {way}: isopod {ours}; containerd {peer} MiB/s");
        let n = ours.count().max(peer.count());
        Row::new(("layer_read", unit), (ours.median(), peer.median()), containerd::NAME, n, Clock::Wall)
    })
    .into()
}

/// MiB per second in a fresh pod.
fn read(side: &Side<'_>, way: &str) -> Result<f64> {
    let config = pod_config("reader");
    fs::create_dir_all(&config.log_directory)?;
    let pod = side.cri.run_pod_with(config)?;
    let container = container_config("reader", "large", &["sleep", "100000"]);
    let container = side.cri.run_container(&pod, container)?;
    let answer = side.cri.shell(&container, &format!("read-file {way} {FILE}"));
    side.cri.remove_pod(&pod.id)?;
    settle();
    speed(&answer?)
}

/// `BYTES bytes in NANOSECONDS ns`.
fn speed(answer: &str) -> Result<f64> {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let [bytes, "bytes", "in", nanoseconds, "ns"] = words[..] else {
        anyhow::bail!("read-file says {answer:?}")
    };
    let number = |word: &str| word.parse::<f64>().with_context(|| format!("read-file says {answer:?}"));
    Ok(number(bytes)? / f64::from(1 << 20) / (number(nanoseconds)? / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_mebibytes_per_second() {
        assert_eq!(speed("67108864 bytes in 500000000 ns").unwrap(), 128.0);
    }

    #[test]
    fn other_words_are_no_speed() {
        assert!(speed("read-file: no such file").is_err());
    }
}
