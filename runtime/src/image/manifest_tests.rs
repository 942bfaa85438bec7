//! Documents of any form, and the descriptors in them.

use super::*;
use crate::image::descriptor::{MOST_URLS, check_layer};
use crate::image::digest::Digest;
use bytes::Bytes;
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
        (r#"{"schemaVersion": "2", "config": {}}"#, "schemaVersion is a string where a whole number belongs"),
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
