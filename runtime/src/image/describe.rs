//! What a registry says an image is: from its name, through indexes, to the manifest for this machine and its configuration,
//! each checked by its digest.
//!
//! ```text
//! name --> index --> entries that suit, the plainest first --> index in it --> ...
//!            |                                            `--> manifest --> configuration --> layers
//!            `----> entries that do not say: the configuration does, the first that suits best
//! ```
//!
//! Called by `pull`. Depth of indexes and number of documents are bounded, and documents are read off the threads that serve
//! calls: they may be megabytes. It must not fetch layers.

use super::configuration::ImageConfiguration;
use super::descriptor::{Descriptor, Entry, check_layer, counts_as_layer};
use super::digest::Digest;
use super::download::Download;
use super::error::ImageError;
use super::layer::LayerSource;
use super::manifest::{LARGEST_CONFIG, LARGEST_MANIFEST, Manifest};
use super::platform::{Fit, Platform, processor_level};
use super::reference::Version;
use super::session::Session;
use super::{blocking, chain};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Deepest nesting of indexes within indexes; the manifest is below them.
const DEEPEST_INDEX: usize = 4;

/// Most manifests and indexes of one pull.
const MOST_DOCUMENTS: usize = 64;

/// Most platforms that an error lists.
const MOST_TOLD: usize = 20;

/// What a registry says an image is, all digests checked.
pub struct Described {
    /// Digest of what the name leads to, an index or the manifest.
    pub named: Digest,
    /// The manifest for this machine.
    pub manifest: (Digest, Bytes),
    /// The configuration as it came.
    pub config: (Digest, Vec<u8>),
    /// The configuration.
    pub configuration: ImageConfiguration,
    /// Its layers, the lowest first.
    pub layers: Arc<[LayerSource]>,
}

/// An image that suits, and how well.
struct Found {
    fit: Fit,
    manifest: (Digest, Bytes),
    config: (Digest, Vec<u8>),
    configuration: ImageConfiguration,
    layers: Vec<(Descriptor, Digest)>,
}

/// What an entry of an index names, or why that is no image.
type Named = Result<Descriptor, String>;

/// A search through the documents of one image.
struct Search<'a> {
    session: &'a Session,
    what: String,
    level: u8,
    documents: usize,
    /// Platforms of what did not suit.
    others: BTreeSet<String>,
    /// Why an entry without platform was passed over: told where nothing else is found.
    passed_over: Option<ImageError>,
}

/// Asks the registry what the image is.
///
/// # Errors
/// [`ImageError::WrongPlatform`] lists what there is for other machines; what is wrong with the documents.
pub async fn describe(session: &Session) -> Result<Described, ImageError> {
    let what = format!("image {}", session.reference());
    let mut search = Search {
        session,
        what,
        level: processor_level(),
        documents: 0,
        others: BTreeSet::new(),
        passed_over: None,
    };
    let (bytes, named) = search.fetch(session.reference().version()).await?;
    let found = match search.parse(&bytes, "").await? {
        // What a user names is taken for what was meant, as containerd does.
        Manifest::Image { config, layers } => {
            Some(search.image((named, bytes), &config, layers, Fit::Amd64(1)).await?)
        }
        Manifest::Index(entries) => {
            drop(bytes);
            search.index(entries, 1).await?
        }
    };
    let Some(found) = found else { return Err(search.nothing()) };
    let Found { manifest, config, configuration, layers, .. } = found;
    let layers = chain::layers(session.reference().registry(), layers);
    Ok(Described { named, manifest, config, configuration, layers })
}

impl Search<'_> {
    async fn fetch(&mut self, version: &Version) -> Result<(Bytes, Digest), ImageError> {
        self.documents += 1;
        if self.documents > MOST_DOCUMENTS {
            return Err(self.unsupported(format!("has more than {MOST_DOCUMENTS} manifests to look through")));
        }
        self.session.manifest(version).await
    }

    async fn parse(&self, bytes: &Bytes, announced: &str) -> Result<Manifest, ImageError> {
        let (bytes, announced, what) = (bytes.clone(), announced.to_owned(), self.what.clone());
        blocking(move || Manifest::parse(&bytes, &announced, &what)).await
    }

    fn unsupported(&self, reason: String) -> ImageError {
        ImageError::Unsupported { what: self.what.clone(), reason }
    }

    /// The image of an index that suits best; `depth` counts the index itself. Of an index no more stays in
    /// memory than what may be followed: others may be below it.
    async fn index(&mut self, entries: Vec<Entry>, depth: usize) -> Result<Option<Found>, ImageError> {
        if depth > DEEPEST_INDEX {
            return Err(self.unsupported(format!("nests indexes deeper than {DEEPEST_INDEX}")));
        }
        let (decided, undecided) = candidates(entries, self.level, |platform| self.note_other(platform));
        for (fit, named) in decided {
            if let Some(found) = self.entry(named, fit, depth).await? {
                return Ok(Some(found));
            }
        }
        let mut best: Option<Found> = None;
        for named in undecided {
            match self.entry(named, Fit::Unknown, depth).await {
                Ok(Some(found)) if found.fit == Fit::Amd64(1) => return Ok(Some(found)),
                Ok(Some(found)) if best.as_ref().is_none_or(|best| found.fit < best.fit) => {
                    best = Some(found)
                }
                Ok(_) => {}
                Err(error) => self.pass_over(error)?,
            }
        }
        Ok(best)
    }

    /// Follows one entry of an index.
    async fn entry(&mut self, named: Named, fit: Fit, depth: usize) -> Result<Option<Found>, ImageError> {
        let descriptor = named.map_err(|reason| {
            self.unsupported(format!("has an entry for this machine that names no image: {reason}"))
        })?;
        let (bytes, digest) = self.fetch(&Version::Digest(descriptor.digest)).await?;
        match self.parse(&bytes, &descriptor.media_type).await? {
            Manifest::Index(entries) => {
                drop(bytes);
                Box::pin(self.index(entries, depth + 1)).await
            }
            Manifest::Image { config, layers } => {
                self.image((digest, bytes), &config, layers, fit).await.map(Some)
            }
        }
    }

    /// Reads the configuration of a manifest, and how well that suits where the index does not say.
    async fn image(
        &mut self,
        manifest: (Digest, Bytes),
        config: &Descriptor,
        layers: Vec<Descriptor>,
        promised: Fit,
    ) -> Result<Found, ImageError> {
        let download = Download::new(self.session, config, format!("configuration of {}", self.what), 0);
        let document = download.whole(LARGEST_CONFIG, "a fixed limit").await?;
        let what = self.what.clone();
        let (document, configuration) = blocking(move || {
            let configuration = parse_configuration(&document, &what)?;
            Ok((document, configuration))
        })
        .await?;
        let fit = match promised {
            Fit::Unknown => {
                let platform = configuration.platform();
                platform.fit(self.level).ok_or_else(|| wrong_platform(&self.what, &platform))?
            }
            promised => promised,
        };
        let layers = pair_layers(layers, &configuration, &self.what)?;
        Ok(Found { fit, manifest, config: (config.digest, document), configuration, layers })
    }

    /// Goes on after an entry that does not say what it is for: it may be no image at all. What says nothing of the entry
    /// ends the search.
    fn pass_over(&mut self, error: ImageError) -> Result<(), ImageError> {
        match error {
            ImageError::WrongPlatform { available, .. } => {
                self.note_other(available);
                Ok(())
            }
            ImageError::Unsupported { .. }
            | ImageError::NotFound { .. }
            | ImageError::BadAnswer { .. }
            | ImageError::Corrupt { .. }
            | ImageError::TooLarge { .. } => {
                self.passed_over.get_or_insert(error);
                Ok(())
            }
            error => Err(error),
        }
    }

    fn note_other(&mut self, platform: String) {
        if self.others.len() < MOST_TOLD && !platform.contains("unknown") {
            self.others.insert(platform);
        }
    }

    /// Why nothing was found.
    fn nothing(self) -> ImageError {
        match self.passed_over {
            Some(error) if self.others.is_empty() => error,
            _ => {
                let names: Vec<_> = self.others.into_iter().collect();
                let available =
                    if names.is_empty() { "nothing that is named".to_owned() } else { names.join(", ") };
                ImageError::WrongPlatform { image: self.what, available }
            }
        }
    }
}

/// What may suit of an index: entries that say so, the plainest first; then entries that do not say what they
/// are for. Of entries that say the same, those that name an image come first: one that cannot be followed
/// spoils nothing but itself. `other` is given the platforms of the rest.
fn candidates(
    entries: Vec<Entry>,
    level: u8,
    mut other: impl FnMut(String),
) -> (Vec<(Fit, Named)>, Vec<Named>) {
    let (mut decided, mut undecided) = (Vec::new(), Vec::new());
    for entry in entries.into_iter().filter(|entry| !entry.belongs_to_an_image()) {
        match entry.platform().map(|platform| (platform, platform.fit(level))) {
            None | Some((_, Some(Fit::Unknown))) => undecided.push(entry.image()),
            Some((_, Some(fit))) => decided.push((fit, entry.image())),
            Some((platform, None)) => other(platform.to_string()),
        }
    }
    decided.sort_by_key(|(fit, named)| (*fit, named.is_err()));
    (decided, undecided)
}

/// What a pull takes from a document and a configuration, without a registry between them: for the fuzz
/// targets.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub enum Outline {
    /// Which digests would be asked for.
    Index {
        /// Of entries that say what they are for, with how well that suits, in order.
        decided: Vec<(Fit, Digest)>,
        /// Of entries that do not say.
        undecided: Vec<Digest>,
        /// Platforms that an error could list.
        others: Vec<String>,
    },
    /// What would be run.
    Image {
        /// The configuration.
        configuration: Box<ImageConfiguration>,
        /// Names of the layers, the lowest first.
        chain_ids: Vec<Digest>,
    },
}

/// As [`describe`], of documents that are here; `level` is the processor's.
///
/// # Errors
/// Those of the documents.
#[cfg(any(test, feature = "testing"))]
pub fn outline(document: &[u8], configuration: &[u8], level: u8) -> Result<Outline, ImageError> {
    match Manifest::parse(document, "", "it")? {
        Manifest::Index(entries) => {
            let mut others = Vec::new();
            let (decided, undecided) = candidates(entries, level, |platform| others.push(platform));
            let decided = decided.into_iter().filter_map(|(fit, named)| Some((fit, named.ok()?.digest)));
            let undecided = undecided.into_iter().flatten().map(|descriptor| descriptor.digest);
            Ok(Outline::Index { decided: decided.collect(), undecided: undecided.collect(), others })
        }
        Manifest::Image { layers, .. } => {
            let configuration = parse_configuration(configuration, "it")?;
            let layers = pair_layers(layers, &configuration, "it")?;
            let chain_ids = chain::layers("r.test", layers).iter().map(|layer| layer.chain_id).collect();
            Ok(Outline::Image { configuration: Box::new(configuration), chain_ids })
        }
    }
}

/// Reads an image configuration and checks that it is for this machine; of builders that name no platform it is believed.
/// The level of the architecture is not checked here: an image that is here runs as far as its programs do.
///
/// # Errors
/// [`ImageError::Unsupported`], [`ImageError::WrongPlatform`].
pub fn parse_configuration(document: &[u8], what: &str) -> Result<ImageConfiguration, ImageError> {
    debug_assert!(document.len() as u64 <= LARGEST_CONFIG.max(LARGEST_MANIFEST));
    let configuration = ImageConfiguration::parse(document).map_err(|error| ImageError::Unsupported {
        what: what.to_owned(),
        reason: format!("has no usable configuration: {error}"),
    })?;
    let platform = configuration.platform();
    let any_level = Platform { variant: String::new(), ..platform.clone() };
    match any_level.fit(1) {
        Some(_) => Ok(configuration),
        None => Err(wrong_platform(what, &platform)),
    }
}

fn wrong_platform(what: &str, platform: &Platform) -> ImageError {
    ImageError::WrongPlatform { image: what.to_owned(), available: platform.to_string() }
}

/// Joins the layers of the manifest with the digests of their uncompressed forms. What is no layer is set aside where layers remain.
fn pair_layers(
    mut layers: Vec<Descriptor>,
    configuration: &ImageConfiguration,
    what: &str,
) -> Result<Vec<(Descriptor, Digest)>, ImageError> {
    let unsupported = |reason: String| ImageError::Unsupported { what: what.to_owned(), reason };
    let diff_ids = &configuration.diff_ids;
    if layers.iter().any(counts_as_layer) {
        layers.retain(counts_as_layer);
    }
    if diff_ids.len() != layers.len() {
        let (have, want) = (layers.len(), diff_ids.len());
        return Err(unsupported(format!("has {have} layers, but its configuration lists {want}")));
    }
    let pair = |(layer, diff_id): (Descriptor, &String)| {
        check_layer(&layer)?;
        let diff_id = diff_id.parse().map_err(|error| unsupported(format!("{error}")))?;
        Ok((layer, diff_id))
    };
    layers.into_iter().zip(diff_ids).map(pair).collect()
}
