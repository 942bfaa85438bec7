//! `net_throughput` and `net_latency`: one TCP connection between the node and a pod.
//!
//! A stream to the pod and one from it, as iperf3 has them: pieces of 128 KiB, after a warm-up in which TCP finds its pace. The time
//! is the node's, until the last byte has arrived. Then 64 bytes back and forth, one at a time. The pod's end is `net-peer` of the
//! image `net` on both sides, the node's end is this program.

use super::report::{Clock, Row};
use super::side::{Side, settle};
use super::statistics::Samples;
use super::{Counts, containerd, pods};
use crate::cri::{Pod, container_config, wait_for};
use crate::held;
use crate::kvm_counters::KvmCounters;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The metrics and their units.
pub const METRICS: [(&str, &str); 3] =
    [("net_throughput", "Mbit/s to pod"), ("net_throughput", "Mbit/s from pod"), ("net_latency", "us")];

/// Bytes of a stream that is timed, and of one before it.
const STREAM: u64 = 32 << 20;
const WARM_UP: u64 = 4 << 20;

/// Bytes that are written or read at a time.
const PIECE: usize = 128 << 10;

/// Bytes that go back and forth, how often, and how often before that.
const PING: usize = 64;
const PINGS: u64 = 500;
const FIRST_PINGS: u64 = 50;

const PORT: u16 = 5201;

/// What KVM counts of a guest: all exits, of these what was decoded as an access to a register, what of it
/// ended in the VMM and not in KVM, and halts; and interrupts.
const KVM_COUNTERS: [&str; 5] = ["exits", "insn_emulation", "mmio_exits", "halt_exits", "irq_injections"];

/// The node's end of pods' networks, and its counts of frames from pods and to pods.
const BRIDGE: &str = "cni0";
const FRAME_COUNTERS: [&str; 2] = ["rx_packets", "tx_packets"];

/// No single read or write may take longer.
const STALL: Duration = Duration::from_secs(60);

/// One side's figures, in the units of [`METRICS`].
#[derive(Default)]
struct Figures([Samples; 3]);

/// On each side in turn, each time with a fresh pod.
pub fn measure(sides: &mut [Side<'_>; 2], counts: &Counts, clock: Clock) -> Vec<Row> {
    let mut figures = [Figures::default(), Figures::default()];
    for side in sides.iter_mut() {
        side.run("pulling the image of the network's figures", |side| Ok(side.cri.pull("net")?));
    }
    for round in 0..counts.streams {
        for (side, Figures(samples)) in sides.iter_mut().zip(&mut figures) {
            let seen = side.run("a connection", |side| connect_and_measure(side, &format!("net-{round}")));
            for (samples, seen) in samples.iter_mut().zip(seen.into_iter().flatten()) {
                samples.push(seen);
            }
        }
    }
    let [Figures(ours), Figures(peer)] = figures;
    let rows = METRICS.into_iter().zip(ours.iter().zip(&peer)).map(|(metric, (ours, peer))| {
        println!("  {} {}: isopod {ours}; containerd {peer}", metric.0, metric.1);
        let n = ours.count().max(peer.count());
        Row::new(metric, (ours.median(), peer.median()), containerd::NAME, n, clock)
    });
    rows.collect()
}

/// The figures of a fresh pod.
fn connect_and_measure(side: &Side<'_>, name: &str) -> Result<[f64; 3]> {
    let pod = side.cri.run_pod_with(pods::config(side, name)?)?;
    let server = container_config("peer", "net", &["net-peer", &PORT.to_string()]);
    side.cri.run_container(&pod, server)?;
    let address = side.cri.pod_status(&pod.id)?.network.unwrap_or_default().ip;
    let address: IpAddr = address.parse().with_context(|| format!("pod address {address:?}"))?;
    settle();
    let work = Work::of(&pod);
    let seen = connect(SocketAddr::new(address, PORT)).and_then(|mut pod| {
        stream_to(&mut pod, WARM_UP)?;
        let to = work.told("to pod", || stream_to(&mut pod, STREAM))?;
        stream_from(&mut pod, WARM_UP)?;
        let from = work.told("from pod", || stream_from(&mut pod, STREAM))?;
        let [to, from] = [to, from].map(|took| megabits_per_second(STREAM, took));
        ping(&mut pod, FIRST_PINGS)?;
        let pings = ping(&mut pod, PINGS)?;
        Ok([to, from, pings.median().context("no round trip was timed")?])
    });
    side.cri.remove_pod(&pod.id)?;
    settle();
    seen
}

/// What a stream costs a guest beside time, by the counts of KVM and of the host's end of its network. A
/// container has no guest: then nothing is told.
struct Work {
    counters: Option<KvmCounters>,
}

impl Work {
    fn of(pod: &Pod) -> Self {
        Self { counters: held::vmm_of(pod).and_then(KvmCounters::of).ok() }
    }

    /// Runs a stream of [`STREAM`] bytes and prints its counts for each MiB.
    fn told(&self, direction: &str, stream: impl FnOnce() -> Result<Duration>) -> Result<Duration> {
        let Some(counters) = &self.counters else { return stream() };
        let before = Self::read(counters)?;
        let took = stream()?;
        let after = Self::read(counters)?;
        let mib = (STREAM >> 20) as f64;
        let counts = (KVM_COUNTERS.iter().chain(&FRAME_COUNTERS).zip(before.iter().zip(&after)))
            .map(|(name, (before, after))| format!("{:.0} {name}", (after - before) as f64 / mib));
        println!("  each MiB {direction}: {}", counts.collect::<Vec<_>>().join(", "));
        Ok(took)
    }

    fn read(counters: &KvmCounters) -> Result<Vec<u64>> {
        let frames = |name: &str| {
            let path = format!("/sys/class/net/{BRIDGE}/statistics/{name}");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            text.trim().parse().with_context(|| path)
        };
        let of_kvm = KVM_COUNTERS.iter().map(|name| counters.read(name));
        of_kvm.chain(FRAME_COUNTERS.iter().map(|name| frames(name))).collect()
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let connected = wait_for("the pod's end of a connection", || {
        Ok(TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok())
    })?;
    connected.set_nodelay(true)?;
    connected.set_read_timeout(Some(STALL))?;
    connected.set_write_timeout(Some(STALL))?;
    Ok(connected)
}

/// What `net-peer` is asked for: see its head.
fn ask(pod: &mut TcpStream, letter: u8, count: u64) -> Result<()> {
    let mut request = vec![letter];
    request.extend(count.to_le_bytes());
    Ok(pod.write_all(&request)?)
}

/// Has the pod read so many bytes; from the first to its word that it has the last.
fn stream_to(pod: &mut TcpStream, bytes: u64) -> Result<Duration> {
    let piece = vec![0; PIECE];
    ask(pod, b'R', bytes)?;
    let begin = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let next = left.min(PIECE as u64);
        pod.write_all(&piece[..next as usize])?;
        left -= next;
    }
    pod.read_exact(&mut [0])?;
    Ok(begin.elapsed())
}

/// Has the pod send so many bytes; from the question to the last of them.
fn stream_from(pod: &mut TcpStream, bytes: u64) -> Result<Duration> {
    let mut piece = vec![0; PIECE];
    let begin = Instant::now();
    ask(pod, b'S', bytes)?;
    let mut left = bytes;
    while left > 0 {
        let room = left.min(PIECE as u64) as usize;
        let read = pod.read(&mut piece[..room])?;
        ensure!(read > 0, "the pod closed its connection {left} bytes too early");
        left -= read as u64;
    }
    Ok(begin.elapsed())
}

/// Round trips of 64 bytes, each in microseconds.
fn ping(pod: &mut TcpStream, count: u64) -> Result<Samples> {
    let mut answer = [0; PING];
    ask(pod, b'E', count)?;
    (0..count)
        .map(|_| {
            let begin = Instant::now();
            pod.write_all(&[7; PING])?;
            pod.read_exact(&mut answer)?;
            Ok(begin.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

fn megabits_per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e6 / took.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// As `net-peer`, for one client.
    fn peer() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 9];
            while client.read_exact(&mut request).is_ok() {
                let count = u64::from_le_bytes(request[1..].try_into().unwrap()) as usize;
                let mut bytes = vec![0; count];
                match request[0] {
                    b'R' => {
                        client.read_exact(&mut bytes).unwrap();
                        client.write_all(&[1]).unwrap();
                    }
                    b'S' => client.write_all(&bytes).unwrap(),
                    _ => {
                        for _ in 0..count {
                            let mut ping = [0; PING];
                            client.read_exact(&mut ping).unwrap();
                            client.write_all(&ping).unwrap();
                        }
                    }
                }
            }
        });
        address
    }

    #[test]
    fn streams_and_round_trips_follow_each_other_on_one_connection() {
        let mut pod = connect(peer()).unwrap();
        let odd = PIECE as u64 * 2 + 7;
        assert!(stream_to(&mut pod, odd).unwrap() > Duration::ZERO);
        assert!(stream_from(&mut pod, odd).unwrap() > Duration::ZERO);
        assert_eq!(ping(&mut pod, 5).unwrap().count(), 5);
        assert!(stream_to(&mut pod, 1).unwrap() > Duration::ZERO);
    }

    #[test]
    fn megabits_are_millions_of_bits() {
        assert_eq!(megabits_per_second(125_000, Duration::from_millis(500)), 2.0);
    }
}
