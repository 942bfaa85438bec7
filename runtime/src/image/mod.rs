//! Images on this node: pulled from registries, kept as one EROFS file per layer, resolved for containers.
//!
//! ```text
//! cri/pull_image -> pull -> describe, manifest, configuration        what it is
//!                        -> registry, session, endpoint, auth         who has it, and who may have it
//!                        -> chain, flight -> layer -> download, feed, pump, worker      each layer once
//!                                              |    worker: jail, compression, tar, convert, erofs, overlay
//!                                              `--> slots, quota               when, and how much
//!                        -> content, records                          kept by digest, found by name
//! container      -> Images::resolve
//! ```
//!
//! `cri` and `container` call [`Images`], and nothing below it. README.md beside this file tells what is where on disk.

mod answer;
mod auth;
mod chain;
pub mod compression;
mod configuration;
mod content;
pub mod convert;
mod describe;
mod descriptor;
mod destinations;
mod digest;
mod download;
mod endpoint;
pub mod erofs;
mod error;
mod eviction;
mod feed;
mod flight;
mod hosts;
mod jail;
mod json;
mod layer;
mod lookups;
mod manifest;
mod output;
pub mod overlay;
mod platform;
mod process;
mod pull;
mod pump;
mod quota;
mod rate;
mod records;
mod reference;
mod registry;
mod remove;
mod session;
mod slots;
mod sys;
pub mod tar;
#[cfg(test)]
mod test_registry;
pub mod worker;

pub use auth::{Challenge, SentCredentials};
pub use configuration::ImageConfiguration;
pub use content::Usage;
#[cfg(any(test, feature = "testing"))]
pub use describe::{Outline, outline};
pub use digest::Digest;
#[cfg(any(test, feature = "testing"))]
pub use endpoint::{TokenAddress, token_address, token_in};
pub use error::ImageError;
pub use manifest::Manifest;

use crate::config::{ImageConfig, RegistryConfig};
use crate::lock::lock;
use crate::store::{Collection, Durability};
use content::Content;
use flight::Flights;
use layer::Converter;
use records::{Record, Records};
use reference::Query;
use registry::{Patience, Registry};
use slots::{Rules, Slots};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Time for which a conversion keeps its slot while a registry or pull with fewer slots waits for one.
const TIME_SLICE: Duration = Duration::from_secs(10);

/// Time for which it keeps its slot while it waits for its registry, and any other conversion waits for a slot.
const IDLE_SLICE: Duration = Duration::from_secs(2);

/// An image that can be run, with its configuration, which is read for each container: a node keeps many
/// images, and runs few.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: the id in all of the CRI.
    pub id: Digest,
    /// Full names with digests.
    pub repo_digests: Vec<String>,
    /// Entry point, environment and the rest of what its builder set.
    pub config: Arc<ImageConfiguration>,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// An image as lists show it.
#[derive(Debug, Clone)]
pub struct ListedImage {
    /// Digest of the configuration: the id in all of the CRI.
    pub id: Digest,
    /// Full names with tags.
    pub repo_tags: Vec<String>,
    /// Full names with digests.
    pub repo_digests: Vec<String>,
    /// Bytes it takes on disk, shared layers included.
    pub size: u64,
    /// User that its processes run as unless told otherwise.
    pub user: ImageUser,
}

/// The user in an image's configuration, without the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// None is set: root.
    Unset,
    /// A number.
    Id(i64),
    /// A name in the image's `/etc/passwd`.
    Name(String),
}

impl ImageUser {
    /// Bytes that it takes at most in the list of all images, beside what each image takes.
    fn listed(&self) -> usize {
        match self {
            Self::Unset | Self::Id(_) => 0,
            Self::Name(name) => name.len(),
        }
    }
}

/// A layer on disk: an EROFS file. It may be removed while it is open; what is open stays readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the layer upon those below it, which names the file.
    pub chain_id: Digest,
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// What images take of their file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// A directory on that file system.
    pub directory: PathBuf,
    /// What is taken.
    pub usage: Usage,
}

/// The image service. Clones are the same service.
#[derive(Clone)]
pub struct Images(Arc<Shared>);

struct Shared {
    content: Arc<Content>,
    documents: Collection<Record>,
    state: Mutex<State>,
    /// Held while records are changed on disk and in memory, so that both change in one order.
    writing: tokio::sync::Mutex<()>,
    flights: Flights,
    registry: Registry,
    converter: Arc<Converter>,
    /// Most bytes of all layers of one image, uncompressed.
    largest_image: u64,
    /// Pulls so far.
    pulls: AtomicU64,
}

#[derive(Default)]
struct State {
    records: Records,
    /// The user of each image: what lists show of configurations, which stay on disk.
    users: BTreeMap<Digest, ImageUser>,
    /// Content that a pull needs and no record names yet, with the number of such pulls: it is not garbage.
    pins: BTreeMap<Digest, usize>,
}

impl Images {
    /// Opens the store below `directory`. Half-done pulls of a killed daemon are removed, and images of which a part is
    /// missing are dropped, so that kubelet pulls them again. `cgroup` is that of converters; without it each
    /// has its own limits only.
    ///
    /// # Errors
    /// A directory that cannot be used, or a registry configuration that makes no sense.
    pub fn open(
        directory: &Path,
        config: &ImageConfig,
        registries: &BTreeMap<String, RegistryConfig>,
        cgroup: Option<PathBuf>,
    ) -> Result<Self, ImageError> {
        let patience = Patience {
            stall: Duration::from_secs(config.stall_timeout_s.into()),
            least_rate: u64::from(config.min_rate_kib_s) << 10,
            first_pause: Duration::from_millis(300),
            attempts: 4,
        };
        let converter = Converter {
            launcher: PathBuf::from("/proc/self/exe"),
            uid: config.jail_uid,
            largest_layer: config.max_layer_mib << 20,
            reserve: config.disk_reserve_mib << 20,
            cgroup,
            patience: Duration::from_secs(180),
            slots: Slots::new(Rules { slots: config.parallel_layers, slice: TIME_SLICE, idle: IDLE_SLICE }),
        };
        let registry = Registry::open(registries.clone(), config.foreign_layers, patience)?;
        Self::open_with(directory, converter, registry, config.max_image_mib << 20)
    }

    fn open_with(
        directory: &Path,
        converter: Converter,
        registry: Registry,
        largest_image: u64,
    ) -> Result<Self, ImageError> {
        let content = Content::open(directory)?;
        let documents = Collection::open(directory.join("records"), Durability::Machine)?;
        let mut state = State::default();
        let mut whole = Vec::new();
        let loaded = documents.load()?;
        for path in &loaded.corrupt {
            tracing::error!(path = %path.display(), "image record is corrupt and was set aside: pull the image again");
        }
        for (name, record) in loaded.documents {
            match check_whole(&content, &record).and_then(|()| configuration(&content, &record.id)) {
                Ok(configuration) => {
                    state.users.insert(record.id, user(&configuration));
                    whole.push(record);
                }
                Err(error) => {
                    tracing::error!(image = %record.id, tags = ?record.repo_tags, %error, "image is not whole: pull it again");
                    documents.remove(&name)?;
                }
            }
        }
        let (records, changed) = Records::load(whole);
        for record in records.all().filter(|record| changed.contains(&record.id)) {
            documents.put(&record.id.hex(), record)?;
        }
        state.records = records;
        let images = Self(Arc::new(Shared {
            content: Arc::new(content),
            documents,
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
            flights: Flights::default(),
            registry,
            converter: Arc::new(converter),
            largest_image,
            pulls: AtomicU64::new(0),
        }));
        images.collect_garbage()?;
        Ok(images)
    }

    /// The image of a name, a digest or an id, for running it. Its configuration is read from the disk.
    ///
    /// # Errors
    /// [`ImageError::NotPresent`] where it has not been pulled, or is removed meanwhile;
    /// [`ImageError::Corrupt`] where its configuration has been altered.
    pub async fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let absent = || ImageError::NotPresent(reference.chars().take(300).collect());
        let query = Query::parse(reference)?;
        let (id, repo_digests, layers) = {
            let state = self.state();
            let record = state.records.find(&query)?.ok_or_else(absent)?;
            (record.id, record.repo_digests.iter().cloned().collect(), self.layers_of(record))
        };
        let content = Arc::clone(&self.0.content);
        match blocking(move || configuration(&content, &id)).await {
            Ok(config) => Ok(Image { id, repo_digests, config: Arc::new(config), layers }),
            Err(ImageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Err(absent()),
            Err(error) => Err(error),
        }
    }

    /// The image of a name, a digest or an id; `None` where it is not on this node.
    ///
    /// # Errors
    /// A name that is none; the beginning of several ids.
    pub fn status(&self, reference: &str) -> Result<Option<ListedImage>, ImageError> {
        let query = Query::parse(reference)?;
        let state = self.state();
        Ok(state.records.find(&query)?.and_then(|record| state.listed(record)))
    }

    /// The layers of an image, the lowest first; none where it is not on this node.
    pub fn layers(&self, id: &Digest) -> Vec<Layer> {
        let state = self.state();
        state.records.get(id).map(|record| self.layers_of(record)).unwrap_or_default()
    }

    /// All images, or only that of `reference`.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn list(&self, reference: Option<&str>) -> Result<Vec<ListedImage>, ImageError> {
        if let Some(reference) = reference {
            return Ok(self.status(reference)?.into_iter().collect());
        }
        let state = self.state();
        Ok(state.records.all().filter_map(|record| state.listed(record)).collect())
    }

    /// The configuration of an image as its builder wrote it, made legible where a strict reader of JSON would refuse it.
    ///
    /// # Errors
    /// A file that cannot be read: somebody has removed the image since.
    pub async fn configuration_document(&self, id: &Digest) -> Result<String, ImageError> {
        let (content, id) = (Arc::clone(&self.0.content), *id);
        let legible = move || {
            json::legible(&content.read_blob(&id)?).map_err(|error| ImageError::Unsupported {
                what: format!("configuration {id}"),
                reason: error.to_string(),
            })
        };
        blocking(legible).await
    }

    /// What images take of their file system.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub async fn fs_info(&self) -> Result<FsInfo, ImageError> {
        let content = Arc::clone(&self.0.content);
        blocking(move || Ok(FsInfo { directory: content.root().to_owned(), usage: content.usage()? })).await
    }

    fn layers_of(&self, record: &Record) -> Vec<Layer> {
        let layers = record.layers.iter().map(|layer| Layer {
            chain_id: layer.chain_id,
            path: self.0.content.layer_path(&layer.chain_id),
            size: layer.size,
        });
        layers.collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl State {
    fn listed(&self, record: &Record) -> Option<ListedImage> {
        let user = self.users.get(&record.id)?.clone();
        Some(ListedImage {
            id: record.id,
            repo_tags: record.repo_tags.iter().cloned().collect(),
            repo_digests: record.repo_digests.iter().cloned().collect(),
            size: record.size,
            user,
        })
    }
}

/// Runs file work off the threads that serve calls.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ImageError::Interrupted("the image store".to_owned()))?
}

/// Checks that manifest and layers of an image are there.
fn check_whole(content: &Content, record: &Record) -> Result<(), ImageError> {
    content.read_blob(&record.manifest)?;
    for layer in &record.layers {
        if content.layer_size(&layer.chain_id)? != Some(layer.size) {
            return Err(ImageError::NotPresent(format!("layer {}", layer.chain_id)));
        }
    }
    Ok(())
}

/// The configuration of an image on disk. Blocks.
fn configuration(content: &Content, id: &Digest) -> Result<ImageConfiguration, ImageError> {
    describe::parse_configuration(&content.read_blob(id)?, &id.to_string())
}

fn user(config: &ImageConfiguration) -> ImageUser {
    match config.user.split(':').next().unwrap_or_default() {
        "" => ImageUser::Unset,
        user => user.parse().map_or_else(|_| ImageUser::Name(user.to_owned()), ImageUser::Id),
    }
}

#[cfg(test)]
mod tests;
