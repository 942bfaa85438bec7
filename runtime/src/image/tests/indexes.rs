//! What a pull makes of indexes: which entry it takes, what it passes over, and when it gives up.

use super::{Node, anonymous};
use crate::image::test_registry::{Shelf, TestImage, TestRegistry, descriptor};
use crate::image::{Digest, ImageError, Images};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A repository `app` that documents are put into.
#[derive(Default)]
struct Repository(Shelf);

impl Repository {
    fn put(&mut self, kind: &str, document: &[u8]) -> Value {
        let place = if kind == "blob" { "blobs" } else { "manifests" };
        self.0.insert(format!("app/{place}/{}", Digest::of(document)), document.to_vec());
        descriptor(document, kind)
    }

    /// An image whose one layer holds `text`, with fields of its configuration changed.
    fn image(&mut self, text: &str, change: &Value) -> Value {
        let image = TestImage::of_texts(&[text]);
        let mut config: Value = serde_json::from_slice(&image.config_document()).unwrap();
        for (name, value) in change.as_object().unwrap() {
            config[name] = value.clone();
        }
        let config = self.put("blob", config.to_string().as_bytes());
        let layers: Vec<_> = image.blobs().iter().map(|blob| self.put("blob", blob)).collect();
        let layers: Vec<_> = layers
            .into_iter()
            .map(|mut layer| {
                layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
                layer
            })
            .collect();
        self.put(MANIFEST, json!({"config": config, "layers": layers}).to_string().as_bytes())
    }

    fn index(&mut self, entries: &Value) -> Value {
        self.put(INDEX, json!({"schemaVersion": 2, "manifests": entries}).to_string().as_bytes())
    }

    fn tag(&mut self, tag: &str, descriptor: &Value) {
        let document = self.0[&format!("app/manifests/{}", descriptor["digest"].as_str().unwrap())].clone();
        self.0.insert(format!("app/manifests/{tag}"), document);
    }
}

fn on(mut entry: Value, os: &str, architecture: &str, variant: &str) -> Value {
    entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
    entry
}

/// Pulls an index of `entries`, and gives the id of the image that was taken.
async fn pull(mut repository: Repository, entries: &Value) -> Result<Digest, ImageError> {
    let index = repository.index(entries);
    repository.tag("1", &index);
    let registry = TestRegistry::of(repository.0).await;
    Node::new().images().pull(&registry.name("app:1"), &anonymous()).await
}

fn id(repository: &Repository, manifest: &Value) -> Digest {
    let manifest = &repository.0[&format!("app/manifests/{}", manifest["digest"].as_str().unwrap())];
    let manifest: Value = serde_json::from_slice(manifest).unwrap();
    manifest["config"]["digest"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn configuration_decides_where_the_index_does_not() {
    let mut it = Repository::default();
    let arm = it.image("arm", &json!({"architecture": "arm64"}));
    let unsaid = it.image("unsaid", &json!({"architecture": null, "os": ""}));
    let good = it.image("good", &json!({}));
    let empty = it.put("blob", b"{}");
    let artifact = it.put(
        MANIFEST,
        json!({"artifactType": "x/y", "config": empty, "layers": [empty]}).to_string().as_bytes(),
    );
    let mut attestation = it.image("attestation", &json!({}));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let expected = id(&it, &good);
    let mut empty_platform = good.clone();
    empty_platform["platform"] = json!({});
    let entries = json!([null, {}, attestation, artifact, arm, unsaid, empty_platform]);
    assert_eq!(pull(it, &entries).await.unwrap(), expected);

    let mut it = Repository::default();
    let unsaid = it.image("unsaid", &json!({"architecture": null, "os": ""}));
    let expected = id(&it, &unsaid);
    assert_eq!(pull(it, &json!([unsaid])).await.unwrap(), expected, "where there is nothing better");
}

#[tokio::test]
async fn index_in_an_index_is_followed_to_a_depth() {
    for (levels, promised) in [(1, false), (3, false), (3, true), (4, true)] {
        let mut it = Repository::default();
        let image = it.image("nested", &json!({}));
        let expected = id(&it, &image);
        let (arm, mut inner) =
            (on(it.image("arm", &json!({"architecture": "arm64"})), "linux", "arm64", "v8"), image);
        for _ in 1..levels {
            let entry = if promised { on(inner, "linux", "amd64", "") } else { inner };
            inner = it.index(&json!([arm, entry]));
        }
        assert_eq!(pull(it, &json!([inner])).await.unwrap(), expected, "{levels} {promised}");
    }
    let mut it = Repository::default();
    let mut inner = it.image("deep", &json!({}));
    for _ in 0..4 {
        inner = it.index(&json!([inner]));
    }
    let error = pull(it, &json!([inner])).await.unwrap_err().to_string();
    assert!(error.contains("deeper than 4"), "{error}");
}

#[tokio::test]
async fn plainest_image_is_taken_and_what_a_processor_lacks_is_not() {
    let mut it = Repository::default();
    let [plain, v1, v2, v9, wide] = ["plain", "v1", "v2", "v9", "386"].map(|text| it.image(text, &json!({})));
    let ids = [&plain, &v1, &v2, &wide].map(|manifest| id(&it, manifest));
    let (plain, v1) = (on(plain, "linux", "amd64", ""), on(v1, "linux", "amd64", "v1"));
    let (v2, v9) = (on(v2, "linux", "amd64", "v2"), on(v9, "linux", "amd64", "v9"));
    let wide = on(wide, "linux", "386", "");
    let cases = [
        (json!([v9, wide, v2, plain, v1]), Ok(ids[0])),
        (json!([v2, v1, plain]), Ok(ids[1])),
        (json!([wide, v9, v2]), Ok(ids[if crate::image::platform::processor_level() > 1 { 2 } else { 3 }])),
        (json!([v9, wide]), Ok(ids[3])),
        (json!([v9]), Err("only for linux/amd64/v9")),
    ];
    for (entries, expected) in cases {
        let taken = pull(Repository(it.0.clone()), &entries).await;
        match (taken, expected) {
            (Ok(taken), Ok(expected)) => assert_eq!(taken, expected, "{entries}"),
            (Err(error), Err(told)) => assert!(error.to_string().contains(told), "{error}"),
            (taken, _) => panic!("{entries}: {taken:?}"),
        }
    }
}

#[tokio::test]
async fn broken_entries_spoil_nothing_unless_they_are_wanted() {
    let mut it = Repository::default();
    let good = on(it.image("good", &json!({})), "linux", "amd64", "");
    let expected = id(&it, &good);
    let gone = json!({"mediaType": MANIFEST, "digest": Digest::of(b"gone"), "size": 4});
    let broken = json!([
        on(json!({"mediaType": "application/vnd.other+json", "digest": Digest::of(b"other"), "size": 1}), "linux", "amd64", ""),
        on(json!({"mediaType": MANIFEST, "digest": "sha512:00", "size": 1}), "linux", "amd64", ""),
        on(json!({"mediaType": MANIFEST, "digest": Digest::of(b"x"), "size": -1}), "linux", "amd64", ""),
        on(gone.clone(), "linux", "amd64", "v2"),
        on(gone.clone(), "linux", "s390x", ""),
        on(gone.clone(), "unknown", "unknown", ""),
        gone,
        {"platform": 5},
    ]);
    let with_good: Vec<_> = broken.as_array().unwrap().iter().cloned().chain([good]).collect();
    assert_eq!(pull(Repository(it.0.clone()), &json!(with_good)).await.unwrap(), expected);
    for (entries, told) in [
        (json!([broken[0]]), "application/vnd.other+json"),
        (json!([broken[1]]), "is no digest"),
        (json!([broken[2]]), "-1 bytes"),
        (json!([broken[4], broken[5]]), "only for linux/s390x"),
        (json!([broken[6]]), "is not there"),
        (json!([broken[7]]), "platform is a number where an object belongs"),
        (json!([]), "nothing that is named"),
    ] {
        let error = pull(Repository(it.0.clone()), &entries).await.unwrap_err().to_string();
        assert!(error.contains(told), "{entries}: {error}");
    }
}

#[tokio::test]
async fn number_of_documents_is_bounded() {
    let mut it = Repository::default();
    let others: Vec<_> = (0..100)
        .map(|n| it.image(&n.to_string(), &json!({"architecture": "arm64", "variant": "v8"})))
        .collect();
    let index = it.index(&json!(others));
    it.tag("1", &index);
    let registry = TestRegistry::of(it.0).await;
    let error = Node::new().images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(error.to_string().contains("only for linux/arm64/v8"), "{error}");
    assert_eq!(registry.asked("/manifests/").len(), 64);
}

#[tokio::test]
async fn index_may_not_announce_one_sort_and_lead_to_the_other() {
    let mut it = Repository::default();
    let mut image = on(it.image("image", &json!({})), "linux", "amd64", "");
    image["mediaType"] = json!(INDEX);
    let error = pull(it, &json!([image])).await.unwrap_err().to_string();
    assert!(error.contains("can be read as an image manifest and as an index"), "{error}");
}

#[tokio::test]
async fn image_without_layers_and_with_odd_configuration_is_pulled_and_found_again() {
    let mut it = Repository::default();
    let odd = b"{\"ARCHITECTURE\": \"amd64\", \"os\": null, \"config\": {\"Env\": [\"A=\xff\", null], \"user\": \"\\ud800\",
        \"Labels\": null, \"Volumes\": {\"/b\": {}, \"/a\": null}}, \"rootfs\": {\"diff_ids\": null}, \"history\": null}";
    let config = it.put("blob", odd);
    let manifest = it.put(MANIFEST, json!({"config": config, "layers": null}).to_string().as_bytes());
    it.tag("1", &manifest);
    let registry = TestRegistry::of(it.0).await;
    let node = Node::new();
    let images = node.images();
    let id = images.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    let look = async |images: &Images| {
        let image = images.resolve(&id.to_string()).await.unwrap();
        assert!(image.layers.is_empty());
        assert_eq!(image.config.env, ["A=\u{fffd}", ""]);
        assert_eq!(image.config.user, "\u{fffd}");
        assert_eq!(image.config.volumes, ["/a", "/b"].map(str::to_owned).into());
        let shown: Value = serde_json::from_str(&images.configuration_document(&id).await.unwrap()).unwrap();
        assert_eq!(shown["config"]["user"], "\u{fffd}");
        assert_eq!(shown["history"], Value::Null);
    };
    look(&images).await;
    drop(images);
    look(&node.images()).await;
}

#[tokio::test]
async fn content_in_the_manifest_is_taken_where_it_is_what_it_says() {
    use base64::Engine as _;
    let mut it = Repository::default();
    let config = TestImage { config: json!({}), layers: Vec::new() }.config_document();
    for (tag, data, asked) in [("in", config.clone(), 0), ("false", vec![b' '; config.len()], 1)] {
        let mut entry = it.put("blob", &config);
        entry["data"] = json!(base64::prelude::BASE64_STANDARD.encode(data));
        let manifest = it.put(MANIFEST, json!({"config": entry}).to_string().as_bytes());
        it.tag(tag, &manifest);
        let registry = TestRegistry::of(it.0.clone()).await;
        let id =
            Node::new().images().pull(&registry.name(&format!("app:{tag}")), &anonymous()).await.unwrap();
        assert_eq!(id, Digest::of(&config));
        assert_eq!(registry.asked("/blobs/").len(), asked, "{tag}");
    }
}
