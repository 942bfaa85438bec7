//! Runs the body of a fuzz target on the stable compiler: on valid inputs, on damaged copies of them and on
//! noise, for as long as `FUZZ_SECONDS` says, or for one second. No coverage guides it, so libFuzzer finds
//! more; this runs everywhere.
//!
//! Included by the modules `fuzz_targets` of `vmm` and `runtime`, in their unit tests. An input that fails is
//! kept in a file, and `FUZZ_INPUT=FILE` runs that one alone.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest input, bytes.
const LONGEST: usize = 64 * 1024;

/// Longest input of noise alone, bytes.
const NOISE: usize = 4096;

/// Time that one input may take.
const HANG: Duration = Duration::from_secs(60);

/// Runs `target` on inputs made of `seeds`, which are valid ones; without any, on noise.
///
/// # Panics
/// Where the target does, with the name of the file that keeps the input. An input that takes longer than
/// [`HANG`] ends the process.
pub fn exercise(name: &'static str, seeds: &[Vec<u8>], target: fn(&[u8])) {
    if let Some(path) = env::var_os("FUZZ_INPUT") {
        return target(&fs::read(path).expect("FUZZ_INPUT names a file"));
    }
    let seconds = env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let watch = Watch::start(name);
    let mut random = Random::new();
    seeds.iter().for_each(|seed| watch.run(target, seed.clone()));
    while Instant::now() < end {
        watch.run(target, random.input(seeds));
    }
}

/// The input that runs, and since when.
type Running = Mutex<Option<(Instant, Vec<u8>)>>;

/// Keeps inputs that fail or do not come to an end.
struct Watch {
    name: &'static str,
    running: Arc<Running>,
}

impl Watch {
    fn start(name: &'static str) -> Self {
        let running = Arc::new(Running::default());
        let watched = Arc::downgrade(&running);
        thread::spawn(move || end_hanging(name, &watched));
        Self { name, running }
    }

    fn run(&self, target: fn(&[u8]), bytes: Vec<u8>) {
        self.set(Some((Instant::now(), bytes.clone())));
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
        self.set(None);
        if outcome.is_err() {
            let path = keep(self.name, &bytes);
            panic!(
                "{}: the input is kept: run this test again with FUZZ_INPUT={}",
                self.name,
                path.display()
            );
        }
    }

    fn set(&self, running: Option<(Instant, Vec<u8>)>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }
}

/// Ends the process where an input takes too long, as nothing else ends a loop; returns when its target is
/// done.
fn end_hanging(name: &str, watched: &Weak<Running>) {
    while let Some(running) = watched.upgrade() {
        let running = running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, bytes)) = running.filter(|(since, _)| since.elapsed() > HANG) {
            let path = keep(name, &bytes);
            eprintln!("{name}: more than {HANG:?} for one input: FUZZ_INPUT={}", path.display());
            std::process::abort();
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn keep(name: &str, bytes: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let path = env::temp_dir().join(format!("isopod-fuzz-{name}-{:016x}", hasher.finish()));
    // Where it cannot be kept, the seed is still in the output.
    let _ = fs::write(&path, bytes);
    path
}

/// Xorshift (Marsaglia), the same inputs for the same `ISOPOD_SEED`.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
        let seed = env::var("ISOPOD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock);
        // Shown by libtest where the test fails.
        println!("ISOPOD_SEED={seed}");
        Self(seed.max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    fn noise(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| (self.next() >> 24) as u8).collect()
    }

    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if seeds.is_empty() || self.below(8) == 0 {
            return self.noise(NOISE);
        }
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            self.damage(&mut bytes, seeds);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    /// Changes one thing.
    fn damage(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let length = self.below((bytes.len() - at).min(64) + 1);
        match self.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + length)),
            2 => drop(bytes.splice(at..at, bytes[at..at + length].to_vec())),
            3 => {
                let noise = self.noise(16);
                drop(bytes.splice(at..at, noise));
            }
            4 => {
                let other = &seeds[self.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[self.below(other.len() + 1)..]);
            }
            5 => {
                let number = self.number();
                let length = number.len().min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&number[..length]);
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            _ => bytes.push((self.next() >> 24) as u8),
        }
    }

    /// A number that bounds are wrong about, in 1 to 8 bytes of either order.
    fn number(&mut self) -> Vec<u8> {
        const NUMBERS: [u64; 12] = [
            0,
            1,
            0x7f,
            0xff,
            0x1000,
            0x7fff,
            0xffff,
            0x7fff_ffff,
            0xffff_ffff,
            1 << 40,
            i64::MAX as u64,
            u64::MAX,
        ];
        let number = NUMBERS[self.below(NUMBERS.len())].wrapping_sub(self.next() & 1);
        let width = 1 << self.below(4);
        match self.below(2) {
            0 => number.to_le_bytes()[..width].to_vec(),
            _ => number.to_be_bytes()[8 - width..].to_vec(),
        }
    }
}
