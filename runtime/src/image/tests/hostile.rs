//! Images and registries that want more than they may have: memory, disk, processor time, or what only this node reaches.

use super::{Node, anonymous};
use crate::image::test_registry::{Reply, TestImage, TestRegistry, from_shelf};
use crate::image::{ImageError, SentCredentials};
use serde_json::json;

#[tokio::test]
async fn layers_that_are_too_much_together_are_refused_by_the_key() {
    // each is far below the limit of one layer
    let texts = ["a", "b", "c"].map(|text| text.repeat(400_000));
    let image = TestImage::of_texts(&texts.each_ref().map(String::as_str));
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let node = Node { largest_image: 1 << 20, ..Node::new() };
    let images = node.images();
    let error = images.pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { key: "image.max_image_mib", .. }), "{error}");
    assert!(error.to_string().contains("app:1 is larger than 1048576 bytes"), "{error}");
    assert_eq!(node.settled().await, [0, 0, 0, 0]);
    Node::new().images().pull(&registry.name("app:1"), &anonymous()).await.unwrap();
}

#[tokio::test]
async fn layers_that_are_announced_as_too_much_are_not_fetched() {
    let image = TestImage::of_texts(&["a", "b"]);
    let mut shelf = image.shelf("app", "1");
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest()).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["size"] = json!(900_000);
    }
    shelf.insert("app/manifests/1".to_owned(), manifest.to_string().into_bytes());
    let registry = TestRegistry::of(shelf).await;
    let node = Node { largest_image: 1 << 20, ..Node::new() };
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { key: "image.max_image_mib", .. }), "{error}");
    assert_eq!(registry.asked("blobs").len(), 1, "the configuration only");
}

#[tokio::test]
async fn image_that_the_disk_has_no_room_for_is_not_fetched() {
    let mut image = TestImage::of_texts(&["a"]);
    image.config = json!({});
    let mut shelf = image.shelf("app", "1");
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest()).unwrap();
    manifest["layers"][0]["size"] = json!(1u64 << 60);
    shelf.insert("app/manifests/1".to_owned(), manifest.to_string().into_bytes());
    let registry = TestRegistry::of(shelf).await;
    let node = Node { largest_image: 1 << 62, reserve: 1 << 20, ..Node::new() };
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::DiskReserve { .. }), "{error}");
    assert!(error.to_string().contains("no space left in"), "{error}");
    assert_eq!(registry.asked("blobs").len(), 1, "the configuration only");
    assert_eq!(node.settled().await, [0, 0, 0, 0]);
}

#[tokio::test]
async fn configuration_of_a_hundred_thousand_variables_is_refused_at_the_pull() {
    let mut image = TestImage::of_texts(&["a"]);
    image.config = json!({"Env": vec!["A=b"; 60_000]});
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let node = Node::new();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("config.Env has 60000 entries, more than 4096"), "{error}");
    assert_eq!(node.kept(), [0, 0, 0, 0]);
}

#[tokio::test]
async fn words_of_a_token_service_elsewhere_are_not_told() {
    for status in [400, 401, 403, 404, 500] {
        let answer = TestRegistry::start(move |_| Reply::new(status, "internal words")).await;
        let realm = format!("Bearer realm=\"http://{}/secret\"", answer.address);
        let registry =
            TestRegistry::start(move |_| Reply::new(401, "").header("WWW-Authenticate", realm.clone())).await;
        for sent in [anonymous(), SentCredentials { identity_token: "r1".to_owned(), ..anonymous() }] {
            let error = Node::new().images().pull(&registry.name("app:1"), &sent).await.unwrap_err();
            let told = error.to_string();
            assert!(told.contains(&format!("status {status}")) && !told.contains("internal"), "{told}");
        }
    }
}

#[tokio::test]
async fn words_of_what_a_registry_redirects_to_are_not_told() {
    let inner = TestRegistry::start(|_| Reply::new(403, "internal words")).await;
    let there = inner.address;
    let image = TestImage::of_texts(&["a"]);
    for of_blobs in [false, true] {
        let shelf = image.shelf("app", "1");
        let registry =
            TestRegistry::start(move |request| match request.line.contains("/blobs/") == of_blobs {
                true => Reply::new(307, "").header("Location", format!("http://{there}/secret")),
                false => from_shelf(&shelf, request),
            })
            .await;
        let error = Node::new().images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
        let told = error.to_string();
        let expected = format!("redirects to http://{there}, which answers status 403");
        assert!(told.contains(&expected) && !told.contains("internal"), "{told}");
    }
    assert_eq!(inner.asked("").len(), 2);
}

#[tokio::test]
async fn registry_on_loopback_leads_to_no_other_place_on_the_link() {
    let registry = TestRegistry::start(move |request| match request.line.contains("/app/") {
        true => Reply::new(401, "")
            .header("WWW-Authenticate", "Bearer realm=\"http://169.254.169.254/latest/meta-data\""),
        false => Reply::new(307, "").header("Location", "http://169.254.169.254/latest/meta-data"),
    })
    .await;
    let node = Node::new();
    let images = node.images();
    for name in ["app:1", "moved:1"] {
        let error = images.pull(&registry.name(name), &anonymous()).await.unwrap_err().to_string();
        assert!(error.contains("169.254.169.254, which is this node or on its link"), "{error}");
    }
}
