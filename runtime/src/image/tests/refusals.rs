//! Images that are not what they say, are not for this machine, or cannot be converted: refused with the reason.

use super::layers::incompressible;
use super::{Node, anonymous};
use crate::image::test_registry::{Shelf, TestImage, TestRegistry, descriptor};
use crate::image::{Digest, ImageError, ImageUser};
use serde_json::json;
use std::slice::from_ref;

/// What the programs that stand for the converter give.
const EMPTY: &[u8] = include_bytes!("../testdata/converters/empty.erofs");

#[tokio::test]
async fn manifest_and_configuration_are_checked_against_their_digests() {
    let image = TestImage::of_texts(&["x"]);
    let mut shelf = image.shelf("app", "1");
    let manifest = Digest::of(&image.manifest());
    shelf.get_mut(&format!("app/manifests/{manifest}")).unwrap().push(b' ');
    let config = format!("app/blobs/{}", image.id());
    shelf.get_mut(&config).unwrap()[3] ^= 1;
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    let error = images.pull(&registry.name(&format!("app@{manifest}")), &anonymous()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("sent another manifest than {manifest}")), "{error}");
    let error = images.pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { expected, .. } if expected == image.id()), "{error}");
}

#[tokio::test]
async fn layer_that_is_not_what_the_configuration_says_is_refused() {
    let image = TestImage::of_texts(&["told"]);
    let other = TestImage::of_texts(&["sent"]);
    let mut shelf = image.shelf("app", "1");
    let blob = other.blobs().remove(0);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest()).unwrap();
    manifest["layers"][0] = descriptor(&blob, "application/vnd.oci.image.layer.v1.tar+gzip");
    shelf.insert("app/manifests/1".to_owned(), manifest.to_string().into_bytes());
    shelf.insert(format!("app/blobs/{}", Digest::of(&blob)), blob);
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(error.to_string().contains("uncompressed layer"), "{error}");
    assert_eq!(node.kept(), [0, 0, 0, 0]);
}

/// The chain id takes the place of two layers in the evil image. What is on disk is taken by its name.
#[tokio::test]
async fn diff_id_that_is_the_chain_id_of_others_brings_none_of_them() {
    let image = TestImage::of_texts(&["a", "b"]);
    let (a, b) = (Digest::of(&image.layers[0]), Digest::of(&image.layers[1]));
    let upper = TestImage::of_texts(&["c"]);
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let node = Node::new();
    let images = node.images();
    images.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    let on_disk = images.layers(&image.id());
    for chain in [on_disk[0].chain_id, on_disk[1].chain_id, Digest::of(format!("{a} {b}").as_bytes())] {
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers",
            "diff_ids": [chain, Digest::of(&upper.layers[0])]}});
        let config = config.to_string().into_bytes();
        let blobs = [image.blobs().remove(1), upper.blobs().remove(0)];
        let layers =
            blobs.each_ref().map(|blob| descriptor(blob, "application/vnd.oci.image.layer.v1.tar+gzip"));
        let named = descriptor(&config, "application/vnd.oci.image.config.v1+json");
        let manifest =
            json!({"schemaVersion": 2, "config": named, "layers": layers}).to_string().into_bytes();
        let content = blobs.into_iter().chain([config]);
        let mut shelf: Shelf =
            content.map(|blob| (format!("evil/blobs/{}", Digest::of(&blob)), blob)).collect();
        shelf.insert("evil/manifests/1".to_owned(), manifest);
        let evil = TestRegistry::of(shelf).await;
        let error = images.pull(&evil.name("evil:1"), &anonymous()).await.unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { expected, .. } if expected == chain), "{error}");
        assert_eq!(images.list(None).unwrap().len(), 1, "{chain}");
    }
}

/// Pulls with each of these converters, which fail, and say so by these words.
async fn each_is_told_and_leaves_nothing(registry: &TestRegistry, converters: &[(&'static str, &str)]) {
    for (converter, said) in converters {
        let node = Node { converter, ..Node::new() };
        let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
        assert!(error.to_string().contains(said), "{converter}: {error}");
        assert_eq!(node.kept(), [0, 0, 0, 0], "{converter}");
    }
}

#[tokio::test]
async fn converter_that_fails_complains_or_hangs_is_told_and_leaves_nothing() {
    let image = TestImage::of_texts(&["x"]);
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let said = [
        ("fails", "no such format"),
        ("complains", "failed to write"),
        ("hangs", "made no progress"),
        ("unjailed", "jail cannot be closed: make namespaces"),
    ];
    each_is_told_and_leaves_nothing(&registry, &said).await;
}

/// A layer of zstd, by a process that gives what [`Node::new`]'s converter does: the daemon looks at what it
/// gave.
#[tokio::test]
async fn zstd_is_decompressed_by_a_process_and_its_output_is_checked() {
    let zstd = zstd::encode_all(b"whatever".as_slice(), 3).unwrap();
    let honest = TestImage { layers: vec![EMPTY.to_vec()], ..TestImage::of_texts(&[]) };
    let other = TestImage::of_texts(&["told"]);
    let node = Node::new();
    let images = node.images();
    let registry = TestRegistry::of(other.shelf_of(from_ref(&zstd), "app", "1")).await;
    let error = images.pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { got, .. } if got == Digest::of(EMPTY)), "{error}");
    assert_eq!(node.kept(), [0, 0, 0, 0]);
    let registry = TestRegistry::of(honest.shelf_of(from_ref(&zstd), "app", "1")).await;
    assert_eq!(images.pull(&registry.name("app:1"), &anonymous()).await.unwrap(), honest.id());
}

#[tokio::test]
async fn decompressor_that_fails_dies_or_hangs_is_told_and_leaves_nothing() {
    // more than the pipe holds
    let noise = incompressible(900_000).into_bytes();
    let image = TestImage { layers: vec![noise.clone()], ..TestImage::of_texts(&[]) };
    let blob = zstd::encode_all(noise.as_slice(), 1).unwrap();
    let registry = TestRegistry::of(image.shelf_of(from_ref(&blob), "app", "1")).await;
    let said = [
        ("decompresses-nothing", "cannot decompress part 7"),
        ("dies-decompressing", "the kernel killed the decompressor"),
        ("hangs-decompressing", "made no progress"),
        ("unjailed", "jail cannot be closed: make namespaces"),
    ];
    each_is_told_and_leaves_nothing(&registry, &said).await;
    let asked = registry.asked(&Digest::of(&blob).to_string()).len();
    assert_eq!(asked, said.len(), "none is a corrupt download, to be tried again");
}

#[tokio::test]
async fn layer_beyond_the_limit_is_refused_by_its_key() {
    let image = TestImage::of_texts(&[&"x".repeat(2 << 20)]);
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let node = Node::new();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { key: "image.max_layer_mib", .. }), "{error}");
    assert_eq!(node.kept(), [0, 0, 0, 0]);
}

#[tokio::test]
async fn image_for_another_machine_or_with_malformed_name_is_refused() {
    let mut image = TestImage::of_texts(&["x"]);
    let mut shelf = image.shelf("app", "1");
    let config = String::from_utf8(image.config_document()).unwrap().replace("amd64", "arm64").into_bytes();
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest()).unwrap();
    manifest["config"] = descriptor(&config, "application/vnd.oci.image.config.v1+json");
    shelf.insert("app/manifests/arm".to_owned(), manifest.to_string().into_bytes());
    shelf.insert(format!("app/blobs/{}", Digest::of(&config)), config);
    image.config = json!({"User": "www-data:www"});
    image.shelve(&mut shelf, "app", "named-user");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    let error = images.pull(&registry.name("app:arm"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::WrongPlatform { .. }), "{error}");
    assert!(matches!(images.pull("BAD//name", &anonymous()).await, Err(ImageError::BadReference { .. })));
    images.pull(&registry.name("app:named-user"), &anonymous()).await.unwrap();
    assert_eq!(images.list(None).unwrap()[0].user, ImageUser::Name("www-data".to_owned()));
}
