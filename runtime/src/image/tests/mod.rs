//! The image service against a registry on loopback, with programs that stand for the converter: no root, no network.
//!
//! Here is the node that the tests of this folder pull to. Each test has a node and a registry of its own, and none may
//! reach past loopback.

mod foreign;
mod hostile;
mod indexes;
mod layers;
mod records;
mod refusals;
mod registries;
mod slots;

use super::test_registry::TestRegistry;
use super::*;
use std::fs;

struct Node {
    directory: tempfile::TempDir,
    registries: BTreeMap<String, RegistryConfig>,
    /// Which program of `testdata/converters` stands for the converter.
    converter: &'static str,
    foreign_layers: bool,
    largest_layer: u64,
    largest_image: u64,
    reserve: u64,
    /// Fewest bytes a second of a registry.
    least_rate: u64,
    /// Longest wait for a byte of a registry.
    stall: Duration,
    slots: Rules,
}

impl Node {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            registries: BTreeMap::new(),
            converter: "makes-empty",
            foreign_layers: false,
            largest_layer: 1 << 20,
            largest_image: 8 << 20,
            reserve: 0,
            least_rate: 0,
            stall: Duration::from_millis(300),
            slots: Rules { slots: 2, slice: Duration::from_millis(200), idle: Duration::from_millis(50) },
        }
    }

    fn with_mirrors(host: &str, mirrors: &[String]) -> Self {
        let section = RegistryConfig { mirrors: mirrors.to_vec(), mirrors_only: true, ..Default::default() };
        Self { registries: [(host.to_owned(), section)].into(), ..Self::new() }
    }

    /// Whose configuration names registries on loopback: others may lead there.
    fn knowing<'a>(registries: impl IntoIterator<Item = &'a TestRegistry>) -> Self {
        let section = |registry: &TestRegistry| (registry.address.to_string(), RegistryConfig::default());
        Self { registries: registries.into_iter().map(section).collect(), ..Self::new() }
    }

    /// The service as a daemon that has just started has it.
    fn images(&self) -> Images {
        let converter = Converter {
            launcher: Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("src/image/testdata/converters")
                .join(self.converter),
            uid: nix::unistd::geteuid().as_raw(),
            largest_layer: self.largest_layer,
            reserve: self.reserve,
            cgroup: None,
            patience: Duration::from_secs(2),
            slots: Slots::new(self.slots),
        };
        let patience = Patience {
            stall: self.stall,
            least_rate: self.least_rate,
            first_pause: Duration::from_millis(1),
            attempts: 3,
        };
        let registry = Registry::open(self.registries.clone(), self.foreign_layers, patience).unwrap();
        let directory = self.directory.path().join("images");
        Images::open_with(&directory, converter, registry, self.largest_image).unwrap()
    }

    fn files(&self, name: &str) -> usize {
        fs::read_dir(self.directory.path().join("images").join(name)).unwrap().count()
    }

    /// Bytes of files that are being written.
    fn incoming_bytes(&self) -> u64 {
        let files = fs::read_dir(self.directory.path().join("images/incoming")).unwrap();
        files.map(|file| file.unwrap().metadata().map_or(0, |metadata| metadata.len())).sum()
    }

    /// How many blobs, layers, half-done files and records there are.
    fn kept(&self) -> [usize; 4] {
        ["blobs", "layers", "incoming", "records"].map(|name| self.files(name))
    }

    /// Waits until so much is kept, as in the middle of a pull.
    async fn until_kept(&self, wanted: [usize; 4]) {
        for _ in 0..1000 {
            if self.kept() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.kept(), wanted);
    }

    /// As [`Self::kept`], once what runs in the background has settled.
    async fn settled(&self) -> [usize; 4] {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.files("incoming") == 0 {
                break;
            }
        }
        self.kept()
    }
}

fn anonymous() -> SentCredentials {
    SentCredentials::default()
}
