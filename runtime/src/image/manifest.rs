//! Manifests and indexes: OCI image specification 1.1 and Docker's schema 2, which differ in media types only.
//!
//! Called by `describe` with bytes whose digest has been checked. It must not ask the registry anything.

use super::digest::Digest;
use super::error::ImageError;
use super::json::{self, Base64, Beginning, HasName, JsonError, Kind, Read, Reader};
use super::platform::Platform;
use bytes::Bytes;

/// What is asked for, in `Accept` headers.
pub const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Largest manifest or index, in bytes; the OCI distribution specification asks registries to take 4 MiB.
pub const LARGEST_MANIFEST: u64 = 4 << 20;

/// Largest image configuration, in bytes.
pub const LARGEST_CONFIG: u64 = 8 << 20;

/// Most layers of one image: the guest's overlayfs takes 500, and Docker makes 127 at most.
const MOST_LAYERS: usize = 256;

/// Most entries of one index: each may be looked at.
const MOST_ENTRIES: usize = 4096;

/// Most addresses elsewhere of one blob.
const MOST_URLS: usize = 16;

/// Annotation of what belongs to an image in an index and is none, such as BuildKit's attestations.
const BELONGS_TO_AN_IMAGE: &str = "vnd.docker.reference.type";

/// Names content and tells its size (OCI image specification, descriptor), checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Kind of the content; empty where the document does not say.
    pub media_type: String,
    /// Name of the content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where else than in the registry it may be.
    pub urls: Vec<String>,
    /// The content itself, where the document of an image holds it; else empty.
    pub data: Bytes,
}

/// A descriptor as a document has it. Whether it is of any use is asked when it is wanted, as in Go: what is wrong with one
/// entry of an index is nothing to the others.
///
/// Of what is not used nothing is kept: an index may be megabytes of annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    media_type: String,
    digest: String,
    size: i64,
    urls: Beginning<String, { MOST_URLS + 1 }>,
    belongs_to_an_image: HasName,
    platform: Option<Platform>,
    /// What in it has a type that it may not have.
    fault: Option<String>,
}

/// A descriptor in the document of an image, which may hold the content too; in an index, `data` is not
/// looked at.
#[derive(Default)]
struct Part {
    entry: Entry,
    data: Base64,
}

/// A manifest or an index, as far as pulling needs it.
#[derive(Debug)]
pub enum Manifest {
    /// One image: its configuration and its layers, the lowest first.
    Image {
        /// The configuration.
        config: Descriptor,
        /// The layers.
        layers: Vec<Descriptor>,
    },
    /// Images for several platforms.
    Index(Vec<Entry>),
}

/// The two kinds of documents that a media type can announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Image,
    Index,
}

/// All fields that tell what a document is. `null` is absent.
#[derive(Default)]
struct Document {
    media_type: String,
    schema_version: i64,
    config: Part,
    layers: Beginning<Part, { MOST_LAYERS + 1 }>,
    manifests: Beginning<Entry, { MOST_ENTRIES + 1 }>,
    has_config: bool,
    has_layers: bool,
    has_manifests: bool,
    has_layers_of_schema_1: bool,
}

impl Read for Document {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        from.fields(|from, name| {
            let there = from.kind()? != Kind::Null;
            match name {
                "mediatype" => self.media_type.read(from),
                "schemaversion" => self.schema_version.read(from),
                "config" => {
                    self.has_config |= there;
                    self.config.read(from)
                }
                "layers" => {
                    self.has_layers |= there;
                    self.layers.read(from)
                }
                "manifests" => {
                    self.has_manifests |= there;
                    self.manifests.read(from)
                }
                "fslayers" => {
                    self.has_layers_of_schema_1 |= there;
                    from.skip()
                }
                _ => from.skip(),
            }
        })
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            media_type: String::new(),
            digest: String::new(),
            size: 0,
            urls: Beginning::default(),
            belongs_to_an_image: HasName { name: BELONGS_TO_AN_IMAGE, there: false },
            platform: None,
            fault: None,
        }
    }
}

impl Read for Entry {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        let ((), fault) = from.apart(|from| from.fields(|from, name| self.read_field(from, name)))?;
        self.fault = self.fault.take().or(fault);
        Ok(())
    }
}

impl Read for Part {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        let Self { entry, data } = self;
        let ((), fault) = from.apart(|from| {
            from.fields(|from, name| match name {
                "data" => data.read(from),
                _ => entry.read_field(from, name),
            })
        })?;
        entry.fault = entry.fault.take().or(fault);
        Ok(())
    }
}

impl Sort {
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => Some(Self::Image),
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Self::Index),
            _ => None,
        }
    }
}

impl Manifest {
    /// Reads a manifest or an index; `announced` is the media type of the descriptor that led to it, empty where there was
    /// none, and `what` names it in errors.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] for anything else. A document that could be read as both is refused, as two programs
    /// could then see two images under one digest (OCI image specification, `mediaType`; CVE-2021-41190): one that has the
    /// fields of both, that calls itself the other, or that was announced as the other.
    pub fn parse(bytes: &[u8], announced: &str, what: &str) -> Result<Self, ImageError> {
        let unsupported = |reason: String| ImageError::Unsupported { what: what.to_owned(), reason };
        let document: Document =
            json::read(bytes).map_err(|error| unsupported(format!("is no image manifest: {error}")))?;
        let sorts = [
            Sort::of(&document.media_type),
            Sort::of(announced),
            (document.has_config || document.has_layers).then_some(Sort::Image),
            document.has_manifests.then_some(Sort::Index),
        ];
        let is = |sort| sorts.contains(&Some(sort));
        let schema_1 = document.schema_version == 1 && !is(Sort::Image) && !is(Sort::Index);
        if document.has_layers_of_schema_1 || schema_1 {
            let reason = "has a manifest of Docker's schema 1, which nothing verifies: push it again with a newer tool";
            return Err(unsupported(reason.to_owned()));
        }
        match (is(Sort::Image), is(Sort::Index)) {
            (true, false) => document.image().map_err(unsupported),
            (false, true) if document.manifests.0.len() > MOST_ENTRIES => {
                Err(unsupported(format!("is an index of more than {MOST_ENTRIES} entries")))
            }
            (false, true) => Ok(Self::Index(document.manifests.0)),
            (true, true) => Err(unsupported("can be read as an image manifest and as an index".to_owned())),
            (false, false) => Err(unsupported("is neither an image manifest nor an index".to_owned())),
        }
    }
}

impl Document {
    fn image(self) -> Result<Manifest, String> {
        if !self.has_config {
            return Err("is a manifest without a configuration".to_owned());
        }
        if self.layers.0.len() > MOST_LAYERS {
            return Err(format!("has more than {MOST_LAYERS} layers"));
        }
        let config =
            self.config.content().map_err(|fault| format!("has no usable configuration: {fault}"))?;
        let layer = |(number, layer): (usize, Part)| {
            layer.content().map_err(|fault| format!("cannot use layer {number} of the manifest: {fault}"))
        };
        let layers = self.layers.0.into_iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        Ok(Manifest::Image { config, layers })
    }
}

impl Part {
    /// As [`Entry::descriptor`], with the addresses of the content, and the content that the document holds,
    /// where that is what its digest says.
    fn content(self) -> Result<Descriptor, String> {
        let descriptor = self.entry.descriptor()?;
        let (urls, data) = (self.entry.urls.0, self.data.0);
        if urls.len() > MOST_URLS {
            return Err(format!("{} has more than {MOST_URLS} addresses", descriptor.digest));
        }
        let whole = data.len() as u64 == descriptor.size && Digest::of(&data) == descriptor.digest;
        Ok(Descriptor { urls, data: if whole { data.into() } else { Bytes::new() }, ..descriptor })
    }
}

impl Entry {
    /// Reads one field.
    fn read_field(&mut self, from: &mut Reader<'_>, name: &str) -> Result<(), JsonError> {
        match name {
            "mediatype" => self.media_type.read(from),
            "digest" => self.digest.read(from),
            "size" => self.size.read(from),
            "urls" => self.urls.read(from),
            "annotations" => self.belongs_to_an_image.read(from),
            "platform" => self.platform.read(from),
            _ => from.skip(),
        }
    }

    /// What it names, checked, without addresses and content.
    ///
    /// # Errors
    /// Why it names nothing that can be fetched. Containerd also refuses content without a size.
    fn descriptor(&self) -> Result<Descriptor, String> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let digest = self.digest.parse().map_err(|error| format!("{error}"))?;
        let size = u64::try_from(self.size).ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| format!("{digest} is said to have {} bytes", self.size))?;
        let media_type = self.media_type.clone();
        Ok(Descriptor { media_type, digest, size, urls: Vec::new(), data: Bytes::new() })
    }

    /// The platform that an index says it is for.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// What it names, an image or an index, whose addresses and content do not matter.
    ///
    /// # Errors
    /// Why it names neither that could be fetched.
    pub fn image(&self) -> Result<Descriptor, String> {
        let descriptor = self.descriptor()?;
        if self.media_type.is_empty() || Sort::of(&self.media_type).is_some() {
            return Ok(descriptor);
        }
        let media_type: String = self.media_type.chars().take(100).collect();
        Err(format!("{} has media type {media_type:?}", descriptor.digest))
    }

    /// Whether it is about an image beside it: an attestation, which is never run.
    pub fn belongs_to_an_image(&self) -> bool {
        self.belongs_to_an_image.there
    }
}

/// Checks that a layer is a tar archive that can be read. How it is compressed shows in its first bytes: some builders
/// write gzip's media type over plain tar and the other way round, or none.
///
/// # Errors
/// [`ImageError::Unsupported`] for encrypted layers and artifacts that are no layers.
pub fn check_layer(layer: &Descriptor) -> Result<(), ImageError> {
    if is_layer(layer) {
        return Ok(());
    }
    let reason = if is_encrypted(layer) {
        "is encrypted, and this runtime holds no keys for images".to_owned()
    } else {
        let media_type: String = layer.media_type.chars().take(100).collect();
        format!("has media type {media_type:?}, which is no layer of a container image")
    };
    Err(ImageError::Unsupported { what: format!("layer {}", layer.digest), reason })
}

/// Whether its media type is that of an image's layer, encrypted or not. Others may lie between layers, for which configurations have
/// no digest: containerd sets them aside.
pub fn counts_as_layer(layer: &Descriptor) -> bool {
    is_layer(layer) || is_encrypted(layer)
}

fn is_encrypted(layer: &Descriptor) -> bool {
    layer.media_type.contains("encrypted")
}

fn is_layer(layer: &Descriptor) -> bool {
    let known = [
        "",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
    ];
    known.contains(&layer.media_type.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn parse(document: &Value) -> Result<Manifest, String> {
        Manifest::parse(document.to_string().as_bytes(), "", "it").map_err(|error| error.to_string())
    }

    fn entry(content: &str) -> Value {
        json!({"mediaType": MANIFEST, "digest": Digest::of(content.as_bytes()), "size": content.len()})
    }

    fn layers(document: &Value) -> Vec<Descriptor> {
        match parse(document) {
            Ok(Manifest::Image { layers, .. }) => layers,
            other => panic!("{document}: {other:?}"),
        }
    }

    #[test]
    fn nothing_but_what_is_fetched_is_required() {
        let config = json!({"digest": Digest::of(b"c"), "size": 1});
        for layers_of_it in [Value::Null, json!([])] {
            let document =
                json!({"config": config, "layers": layers_of_it, "manifests": null, "annotations": null});
            assert_eq!(layers(&document), []);
        }
        assert_eq!(layers(&json!({"config": config})), []);
        let document = json!({"SCHEMAVERSION": 1, "Config": config, "layers": [
            {"Digest": Digest::of(b"l"), "SIZE": 1, "urls": null, "annotations": null, "data": null, "platform": null}]});
        let expected = Descriptor {
            media_type: String::new(),
            digest: Digest::of(b"l"),
            size: 1,
            urls: Vec::new(),
            data: Bytes::new(),
        };
        assert_eq!(layers(&document), [expected]);
        for manifests in [Value::Null, json!([])] {
            let index = parse(&json!({"mediaType": INDEX, "manifests": manifests}));
            assert!(matches!(&index, Ok(Manifest::Index(entries)) if entries.is_empty()), "{index:?}");
        }
    }

    #[test]
    fn addresses_and_content_in_the_document_are_kept() {
        let mut layer = entry("foreign");
        layer["urls"] = json!(["https://a.test/x", "b"]);
        layer["data"] = json!("Zm9y\nZWln\r\nbg==");
        let layer = layers(&json!({"config": entry("c"), "layers": [layer]})).remove(0);
        assert_eq!((layer.urls.len(), &layer.data[..]), (2, b"foreign".as_slice()));
        let mut other = entry("foreign");
        other["data"] = json!("b3RoZXI=");
        let other = layers(&json!({"config": entry("c"), "layers": [other]})).remove(0);
        assert!(other.data.is_empty(), "it is not what its digest says");
        let mut many = entry("foreign");
        many["urls"] = json!(vec!["https://a.test"; 17]);
        let error = parse(&json!({"config": entry("c"), "layers": [many]})).unwrap_err();
        assert!(error.contains("has more than 16 addresses"), "{error}");
    }

    #[test]
    fn document_that_is_manifest_and_index_is_refused() {
        let one = entry("a");
        let documents = [
            json!({"config": one, "layers": [], "manifests": []}),
            json!({"layers": [], "manifests": []}),
            json!({"mediaType": INDEX, "config": one, "layers": [one]}),
            json!({"mediaType": MANIFEST, "manifests": [one]}),
            json!({"mediaType": INDEX, "manifests": [one], "Config": {}}),
            json!({"mediaType": MANIFEST, "config": one, "layers": [], "MANIFESTS": [one]}),
        ];
        for document in documents {
            let error = parse(&document).unwrap_err();
            assert!(error.contains("can be read as"), "{document}: {error}");
        }
        let twice = br#"{"manifests": [], "manifests": null, "config": {}, "layers": []}"#;
        assert!(Manifest::parse(twice, "", "x").is_err());
        let index = json!({"manifests": [one]}).to_string();
        let announced = |media_type| Manifest::parse(index.as_bytes(), media_type, "x");
        assert!(announced(MANIFEST).is_err(), "a descriptor may not announce another sort");
        assert!(announced(INDEX).is_ok() && announced("text/plain").is_ok());
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        let cases = [
            (r#"{"schemaVersion": 1, "fsLayers": []}"#, "schema 1"),
            (r#"{"schemaVersion": 1}"#, "schema 1"),
            ("{}", "neither an image manifest nor an index"),
            ("null", "neither an image manifest nor an index"),
            ("[]", "the document is a list where an object belongs"),
            ("\u{feff}{}", "no JSON at byte 0"),
            (r#"{"layers": []}"#, "a manifest without a configuration"),
            (r#"{"config": {}}"#, "has no usable configuration: \"\" is no digest"),
            (
                r#"{"schemaVersion": "2", "config": {}}"#,
                "schemaVersion is a string where a whole number belongs",
            ),
            (r#"{"config": {"digest": 5}}"#, "config.digest is a number where a string belongs"),
            (r#"{"mediaType": {}, "manifests": []}"#, "mediaType is an object where a string belongs"),
            (r#"{"manifests": {}}"#, "manifests is an object where a list belongs"),
        ];
        for (document, reason) in cases {
            let error = Manifest::parse(document.as_bytes(), "", "it").unwrap_err().to_string();
            assert!(error.contains(reason), "{document}: {error}");
        }
        let mut layer = entry("l");
        layer["size"] = json!(-1);
        let error = parse(&json!({"config": entry("c"), "layers": [entry("k"), layer]})).unwrap_err();
        assert!(error.contains("layer 1 of the manifest") && error.contains("-1 bytes"), "{error}");
        let many = json!({"config": entry("c"), "layers": vec![entry("l"); 257]});
        assert!(parse(&many).unwrap_err().contains("more than 256 layers"));
    }

    #[test]
    fn index_of_very_many_entries_is_refused() {
        let error = parse(&json!({"manifests": vec![json!({}); 4097]})).unwrap_err();
        assert!(error.contains("an index of more than 4096 entries"), "{error}");
        assert!(parse(&json!({"manifests": vec![json!({}); 4096]})).is_ok());
    }

    #[test]
    fn annotations_and_content_of_an_entry_of_an_index_are_not_kept() {
        let text = "x".repeat(10_000);
        let annotations: serde_json::Map<_, _> =
            (0..100).map(|number| (format!("{number}"), json!(text))).collect();
        let mut large = entry("large");
        large["annotations"] = json!(annotations);
        large["data"] = json!(text);
        large["urls"] = json!(vec!["https://a.test"; 1000]);
        let mut attestation = large.clone();
        attestation["annotations"]["vnd.docker.reference.type"] = json!("attestation-manifest");
        let Ok(Manifest::Index(entries)) = parse(&json!({"manifests": [large, attestation]})) else {
            panic!("it is an index")
        };
        assert_eq!(entries.iter().map(Entry::belongs_to_an_image).collect::<Vec<_>>(), [false, true]);
        for entry in &entries {
            assert_eq!(entry.urls.0.len(), MOST_URLS + 1);
            assert!(format!("{entry:?}").len() < 1000, "{entry:?}");
            assert!(entry.image().unwrap().urls.is_empty());
        }
        let parts = format!("{{\"config\": {{}}, \"layers\": [{}]}}", vec!["{}"; 1000].join(","));
        let document: Document = json::read(parts.as_bytes()).unwrap();
        assert_eq!(document.layers.0.len(), MOST_LAYERS + 1, "the rest of too many are not read");
    }

    #[test]
    fn bad_entries_of_an_index_spoil_only_themselves() {
        let entries = json!([null, {}, "text", 5, [], {"digest": "sha512:00"}, {"digest": 1, "size": "x"}, {"size": -1},
            {"platform": "linux/amd64"}, {"annotations": {"a": 1}}, {"data": "!"}, entry("good")]);
        let Ok(Manifest::Index(entries)) = parse(&json!({"manifests": entries})) else {
            panic!("it is an index")
        };
        let good: Vec<_> = entries.iter().filter_map(|entry| entry.descriptor().ok()).collect();
        assert_eq!(good.len(), 1);
        assert_eq!(good[0].digest, Digest::of(b"good"));
        assert_eq!(entries[2].descriptor().unwrap_err(), "manifests is a string where an object belongs");
        assert!(entries[10].descriptor().unwrap_err().contains("is no digest"), "content is not looked at");
    }

    #[test]
    fn only_tar_archives_are_layers() {
        let mut layer = layers(&json!({"config": entry("c"), "layers": [entry("l")]})).remove(0);
        let mut check = |media_type: &str| {
            layer.media_type = media_type.to_owned();
            check_layer(&layer).map_err(|error| error.to_string())
        };
        assert!(
            check("application/vnd.oci.image.layer.v1.tar+gzip+encrypted").unwrap_err().contains("encrypted")
        );
        assert!(check("application/vnd.cncf.helm.chart.content.v1.tar+gzip").unwrap_err().contains("helm"));
        assert!(check("application/vnd.docker.image.rootfs.diff.tar.gzip").is_ok());
        assert!(check("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").is_ok());
        assert!(check("").is_ok());
    }

    fn any_field() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            Just(json!([])),
            Just(json!({})),
            Just(json!("text")),
            Just(json!(-5)),
            Just(json!([null, {"platform": {}}])),
            Just(entry("some")),
            Just(json!([entry("some")])),
        ]
    }

    /// An entry of an index with fields of any type, among them the right one.
    fn any_entry() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            Just("digest"),
            Just("Size"),
            Just("size"),
            Just("urls"),
            Just("data"),
            Just("annotations"),
            Just("platform"),
            Just("mediaType")
        ];
        let value = prop_oneof![
            any_field(),
            Just(json!(Digest::of(b"x"))),
            Just(json!(7)),
            Just(json!(["https://a.test"])),
            Just(json!({"os": "linux", "architecture": "amd64", "vnd.docker.reference.type": "x"})),
        ];
        prop::collection::btree_map(name, value, 0..7).prop_map(|fields| json!(fields))
    }

    proptest! {
        #[test]
        fn any_entries_of_an_index_are_used_or_passed_over(
            entries in prop::collection::vec(prop_oneof![any_entry(), any_field()], 0..8)
        ) {
            let document = json!({"manifests": entries}).to_string();
            let Ok(Manifest::Index(read)) = Manifest::parse(document.as_bytes(), "", "x") else {
                panic!("{document} is an index")
            };
            prop_assert_eq!(read.len(), entries.len());
            for entry in &read {
                let _ = (entry.platform().map(ToString::to_string), entry.belongs_to_an_image());
                match entry.descriptor() {
                    Ok(descriptor) => prop_assert!(descriptor.size > 0 && descriptor.data.is_empty()),
                    Err(_) => prop_assert!(entry.image().is_err()),
                }
            }
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = Manifest::parse(&bytes, "", "x");
        }

        #[test]
        fn no_document_is_image_and_index_in_any_order(
            fields in prop::collection::vec(
                (prop_oneof![Just("config"), Just("layers"), Just("Manifests"), Just("manifests"), Just("mediaType")], any_field()), 0..6)
        ) {
            let text: Vec<_> = fields.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
            let document = format!("{{{}}}", text.join(","));
            let there = |wanted: &[&str]| fields.iter()
                .any(|(name, value)| wanted.contains(&name.to_lowercase().as_str()) && !value.is_null());
            match Manifest::parse(document.as_bytes(), "", "x") {
                Ok(Manifest::Image { .. }) => prop_assert!(!there(&["manifests"]), "{}", document),
                Ok(Manifest::Index(_)) => prop_assert!(!there(&["config", "layers"]), "{}", document),
                Err(_) => {}
            }
        }
    }
}
