//! Layers that no registry has, only addresses in the manifest.

use super::slots::{SOON, eventually, pull};
use super::{Node, anonymous};
use crate::config::RegistryConfig;
use crate::image::test_registry::{Reply, Request, Shelf, TestImage, TestRegistry, descriptor};
use crate::image::{Digest, ImageError, SentCredentials};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// A shelf without the layer of its image, whose manifest names addresses in place of it; and that layer.
fn elsewhere(urls: &[String]) -> (Shelf, Vec<u8>) {
    let image = TestImage::of_texts(&["foreign"]);
    let mut shelf = image.shelf("app", "1");
    let blob = image.blobs().remove(0);
    let mut manifest: Value = serde_json::from_slice(&image.manifest()).unwrap();
    manifest["layers"][0] = descriptor(&blob, FOREIGN);
    manifest["layers"][0]["urls"] = json!(urls);
    shelf.insert("app/manifests/1".to_owned(), manifest.to_string().into_bytes());
    shelf.remove(&format!("app/blobs/{}", Digest::of(&blob)));
    (shelf, blob)
}

/// A host that is no registry, and serves one file from the second try on.
async fn host(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> TestRegistry {
    TestRegistry::start(answer).await
}

/// A node that fetches such layers, and from `host` although that is on loopback.
fn willing(host: &TestRegistry) -> Node {
    Node { foreign_layers: true, ..Node::knowing([host]) }
}

#[tokio::test]
async fn layer_is_fetched_from_its_addresses_without_credentials() {
    let (_, blob) = elsewhere(&[]);
    let sent = blob.clone();
    let other = host(move |request| match request.line.as_str() {
        line if line.contains("/moved") => Reply::new(302, "").header("Location", "/layer?signature=s3cret"),
        line if line.contains("/layer") => Reply::new(200, sent.clone()),
        _ => Reply::new(404, "not here"),
    })
    .await;
    let at = |path: &str| format!("http://{}{path}", other.address);
    let (shelf, _) =
        elsewhere(&["ftp://127.0.0.1/x".to_owned(), "no address".to_owned(), at("/gone"), at("/moved")]);
    let registry = TestRegistry::of(shelf).await;
    let node = willing(&other);
    let sent = SentCredentials { registry_token: "t0ken".to_owned(), ..anonymous() };
    node.images().pull(&registry.name("app:1"), &sent).await.unwrap();
    assert_eq!(other.asked("").len(), 3, "one that has nothing, one that redirects, one that serves");
    assert!(other.asked("").iter().all(|request| !request.headers.contains_key("authorization")));
    assert_eq!(registry.asked(&Digest::of(&blob).to_string()).len(), 1, "the registry is asked first");
}

#[tokio::test]
async fn layer_that_the_registry_has_is_not_looked_for_elsewhere() {
    let other = host(|_| Reply::new(500, "")).await;
    let (mut shelf, blob) = elsewhere(&[format!("http://{}/layer", other.address)]);
    shelf.insert(format!("app/blobs/{}", Digest::of(&blob)), blob);
    let registry = TestRegistry::of(shelf).await;
    for node in [willing(&other), Node::new()] {
        node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    }
    assert!(other.asked("").is_empty());
}

#[tokio::test]
async fn addresses_that_another_image_names_for_the_same_layer_delay_nobody() {
    let image = TestImage::of_texts(&["foreign"]);
    let blob = image.blobs().remove(0);
    let slow =
        host(move |_| Reply { drips: Some(Duration::from_millis(100)), ..Reply::new(200, blob.clone()) })
            .await;
    let (theirs, blob) = elsewhere(&[format!("http://{}/layer", slow.address)]);
    let theirs = theirs.into_iter().map(|(path, body)| (path.replace("app/", "evil/"), body));
    let mut shelf = image.shelf("app", "1");
    shelf.extend(theirs);
    let registry = TestRegistry::of(shelf).await;
    let node = Node { stall: SOON, ..willing(&slow) };
    let images = node.images();
    let attack = pull(&images, registry.name("evil:1"));
    assert!(eventually(|| !slow.asked("/layer").is_empty()).await, "nobody asked for {}", Digest::of(&blob));
    let (name, nobody) = (registry.name("app:1"), anonymous());
    let begun = Instant::now();
    let pulled = tokio::time::timeout(SOON, images.pull(&name, &nobody));
    assert_eq!(pulled.await.expect("it waits for the address of the other image").unwrap(), image.id());
    assert!(!attack.is_finished(), "after {:?}", begun.elapsed());
    attack.abort();
}

#[tokio::test]
async fn unless_it_is_allowed_the_refusal_names_the_key() {
    let other = host(|_| Reply::new(500, "")).await;
    let (shelf, blob) = elsewhere(&[format!("http://{}/layer", other.address)]);
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
    for words in
        [Digest::of(&blob).to_string().as_str(), "image.foreign_layers = true", "not in the registry"]
    {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(other.asked("").is_empty());
    assert_eq!(node.kept(), [0, 0, 0, 0]);

    let mirrors = [format!("http://{}", registry.address)];
    let node = Node { foreign_layers: true, ..Node::with_mirrors("r.test", &mirrors) };
    let error = node.images().pull("r.test/app:1", &anonymous()).await.unwrap_err().to_string();
    assert!(error.contains("registry.\"r.test\".mirrors_only"), "{error}");
    assert!(other.asked("").is_empty());
}

#[tokio::test]
async fn what_comes_from_elsewhere_is_checked_and_its_words_are_not_told() {
    let internal = host(|request| match request.line.as_str() {
        line if line.contains("/metadata") => Reply::new(403, "internal words"),
        line if line.contains("/long") => Reply::new(200, vec![b'x'; 4 << 20]),
        _ => Reply::new(200, "internal words"),
    })
    .await;
    for (path, told) in [
        ("/metadata?key=s3cret", "/metadata: status 403"),
        ("/long", "sent more than"),
        ("/short", "/short: broke off;"),
    ] {
        let (shelf, _) = elsewhere(&[format!("http://{}{path}", internal.address)]);
        let registry = TestRegistry::of(shelf).await;
        let node = willing(&internal);
        let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err().to_string();
        assert!(error.contains(told), "{path}: {error}");
        assert!(!error.contains("internal") && !error.contains("s3cret"), "{error}");
        assert_eq!(node.kept(), [0, 0, 0, 0]);
    }
    let closed = format!("127.0.0.2:{}", internal.address.port());
    let (shelf, _) = elsewhere(&[format!("http://{closed}/layer")]);
    let registry = TestRegistry::of(shelf).await;
    let mut node = willing(&internal);
    node.registries.insert(closed, RegistryConfig::default());
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err().to_string();
    assert!(error.contains("/layer: cannot be reached") && !error.contains("refused"), "{error}");

    let (_, blob) = elsewhere(&[]);
    let altered = host(move |_| {
        let mut blob = blob.clone();
        blob[20] ^= 1;
        Reply::new(200, blob)
    })
    .await;
    let (shelf, _) = elsewhere(&[format!("http://{}/layer", altered.address)]);
    let registry = TestRegistry::of(shelf).await;
    let error = willing(&altered).images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}
