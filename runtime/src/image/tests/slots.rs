//! Registries that are slow on purpose, and images that name layers of others: whoever pulls something else is not held up.

use super::layers::incompressible;
use super::{Node, anonymous};
use crate::image::flight::Passengers;
use crate::image::slots::{Claim, Requester, Rules};
use crate::image::test_registry::{
    Reply, Request, Shelf, TestImage, TestRegistry, descriptor, from_shelf, gzip,
};
use crate::image::{Digest, ImageError, Images};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Longer than any pull here that is not held up.
pub const SOON: Duration = Duration::from_secs(10);

/// A pull in the background, given up with the test.
pub fn pull(images: &Images, name: String) -> JoinHandle<Result<Digest, ImageError>> {
    let images = images.clone();
    tokio::spawn(async move { images.pull(&name, &anonymous()).await })
}

fn is_blob(request: &Request, blob: &[u8]) -> bool {
    request.line.contains(&Digest::of(blob).to_string())
}

/// An answer whose bytes come one by one, each before the registry counts as stalled.
fn dripping(reply: Reply) -> Reply {
    Reply { drips: Some(Duration::from_millis(100)), ..reply }
}

/// A registry with one image, `app:1`, whose layer drips.
async fn slow(text: &str) -> TestRegistry {
    let image = TestImage::of_texts(&[text]);
    let (shelf, blob) = (image.shelf("app", "1"), image.blobs().remove(0));
    TestRegistry::start(move |request| match is_blob(request, &blob) {
        true => dripping(from_shelf(&shelf, request)),
        false => from_shelf(&shelf, request),
    })
    .await
}

/// An image with the layer names of `image` and another blob in place of its lowest: what it is not.
fn claiming(image: &TestImage, blob: &[u8]) -> Shelf {
    let mut shelf = image.shelf("evil", "1");
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest()).unwrap();
    manifest["layers"][0] = descriptor(blob, "application/vnd.oci.image.layer.v1.tar+gzip");
    shelf.insert("evil/manifests/1".to_owned(), manifest.to_string().into_bytes());
    shelf.insert(format!("evil/blobs/{}", Digest::of(blob)), blob.to_vec());
    shelf
}

#[tokio::test]
async fn registries_that_send_a_byte_now_and_then_hold_up_nobody() {
    let node = Node::new();
    let images = node.images();
    let mut registries = Vec::new();
    for number in 0..4 {
        registries.push(slow(&format!("slow {number}")).await);
    }
    let slow: Vec<_> = registries.iter().map(|registry| pull(&images, registry.name("app:1"))).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let image = TestImage::of_texts(&["one", "two", "three"]);
    let good = TestRegistry::of(image.shelf("app", "1")).await;
    let pulled = tokio::time::timeout(SOON, images.pull(&good.name("app:1"), &anonymous())).await;
    assert_eq!(pulled.expect("it waits for registries that it has nothing to do with").unwrap(), image.id());
    assert!(slow.iter().all(|pull| !pull.is_finished()), "they were not slow");
    slow.iter().for_each(JoinHandle::abort);
    assert_eq!(node.settled().await[2], 0, "of pulls that were given up");
}

#[tokio::test]
async fn registry_that_sends_next_to_nothing_is_given_up() {
    let registry = slow("slow").await;
    let node = Node { least_rate: 1000, ..Node::new() };
    let begin = Instant::now();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("less than 1000 bytes a second"), "{error}");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(node.kept(), [0, 0, 0, 0]);
}

#[tokio::test]
async fn bytes_sent_again_are_no_progress() {
    let image = TestImage::of_texts(&[&incompressible(1000)]);
    let (shelf, blob) = (image.shelf("app", "1"), image.blobs().remove(0));
    let known = blob.len() * 3 / 4;
    let registry = TestRegistry::start(move |request| {
        // it knows no ranges
        let mut plain = request.clone();
        let resumed = plain.headers.remove("range").is_some();
        let reply = from_shelf(&shelf, &plain);
        match (is_blob(request, &blob), resumed) {
            (false, _) => reply,
            (true, false) => Reply { breaks_after: Some((known, false)), ..reply },
            (true, true) => Reply { drips: Some(Duration::from_millis(10)), ..reply },
        }
    })
    .await;
    // the known bytes alone take longer than the 3 s that a place may send less than this
    assert!(known > 400, "{known}");
    let node = Node { least_rate: 40, ..Node::new() };
    let begin = Instant::now();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(error.to_string().contains("less than 40 bytes a second"), "{error}");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

/// All of a bomb's layer is sent but for one byte; the node's only slot goes to another conversion, and its
/// pump stops.
#[tokio::test]
async fn bomb_that_was_sent_already_still_needs_a_slot() {
    let bomb = TestImage { layers: vec![vec![0; 64 << 20]], ..TestImage::of_texts(&[]) };
    let (shelf, blob) = (bomb.shelf("bomb", "1"), bomb.blobs().remove(0));
    let registry = TestRegistry::start(move |request| {
        let honest = from_shelf(&shelf, request);
        match is_blob(request, &blob) {
            true => Reply { breaks_after: Some((honest.body.len() - 1, true)), ..honest },
            false => honest,
        }
    })
    .await;
    let node = Node {
        converter: "takes-20-mib",
        largest_layer: 128 << 20,
        largest_image: 128 << 20,
        stall: SOON,
        slots: Rules { slots: 1, slice: SOON, idle: Duration::from_millis(50) },
        ..Node::new()
    };
    let images = node.images();
    let attack = pull(&images, registry.name("bomb:1"));
    let begun = eventually(|| node.files("incoming") == 1).await;
    assert!(begun, "the bomb never came");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let other = claim_of_another_registry(&images);
    tokio::time::timeout(SOON, other.acquire()).await.expect("the bomb waits for a byte");
    // the converter begins to read a second after its start
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.incoming_bytes(), 0, "20 MiB of the bomb had no slot");
    drop(other);
    assert!(eventually(|| node.incoming_bytes() > 0).await, "it never got its slot back");
    attack.abort();
    assert_eq!(node.settled().await[2], 0);
}

fn claim_of_another_registry(images: &Images) -> Claim {
    let pulls = Passengers::default();
    pulls.add(1 << 32);
    images.0.converter.slots.claim(Requester { registry: "other.test".to_owned(), pulls })
}

/// Whether `holds` within [`SOON`].
pub async fn eventually(holds: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !holds() && begin.elapsed() < SOON {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    holds()
}

/// A blob that takes half a minute to drip, and is no layer.
fn evil_blob() -> Vec<u8> {
    gzip(&(0..=255).collect::<Vec<u8>>())
}

#[tokio::test]
async fn image_of_another_registry_that_claims_a_layer_neither_delays_nor_breaks_it() {
    let image = TestImage::of_texts(&["public", "upper"]);
    let blob = evil_blob();
    let evil = claiming(&image, &blob);
    let evil = TestRegistry::start(move |request| match is_blob(request, &blob) {
        true => dripping(from_shelf(&evil, request)),
        false => from_shelf(&evil, request),
    })
    .await;
    let good = TestRegistry::of(image.shelf("app", "1")).await;
    let node = Node::new();
    let images = node.images();
    let attack = pull(&images, evil.name("evil:1"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (name, nobody) = (good.name("app:1"), anonymous());
    let pulled = tokio::time::timeout(SOON, images.pull(&name, &nobody));
    assert_eq!(pulled.await.expect("it waits for the other image's layer").unwrap(), image.id());
    assert!(!attack.is_finished());
    attack.abort();
}

#[tokio::test]
async fn image_of_the_same_registry_that_claims_a_layer_does_not_break_it() {
    let image = TestImage::of_texts(&["public", "upper"]);
    let blob = evil_blob();
    let mut shelf = claiming(&image, &blob);
    image.shelve(&mut shelf, "app", "1");
    let registry = TestRegistry::start(move |request| match is_blob(request, &blob) {
        true => dripping(from_shelf(&shelf, request)),
        false => from_shelf(&shelf, request),
    })
    .await;
    let node = Node::new();
    let images = node.images();
    let attack = pull(&images, registry.name("evil:1"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (name, nobody) = (registry.name("app:1"), anonymous());
    let pulled = tokio::time::timeout(SOON, images.pull(&name, &nobody));
    assert_eq!(pulled.await.expect("it waits for the other image's layer").unwrap(), image.id());
    assert!(!attack.is_finished());
    attack.abort();
    assert_eq!(images.list(None).unwrap().len(), 1);
}

/// The node has one slot. The attacker's pull begins the victim's layer, loses the slot to a third pull, and
/// has a layer of its own take it back, which then hangs.
#[tokio::test]
async fn layer_that_a_victim_waits_for_is_not_behind_others_of_the_pull_that_began_it() {
    let (good, evil) = (TestImage::of_texts(&["base"]), TestImage::of_texts(&["base", "hangs"]));
    let mut shelf = good.shelf("app", "1");
    evil.shelve(&mut shelf, "evil", "1");
    let (base, hanging) = (good.blobs().remove(0), evil.blobs().remove(1));
    let hangs = Digest::of(&hanging).to_string();
    let registry = TestRegistry::start(move |request| {
        let honest = from_shelf(&shelf, request);
        if is_blob(request, &hanging) {
            return Reply { breaks_after: Some((20, true)), ..honest };
        }
        let drips = is_blob(request, &base).then_some(Duration::from_millis(20));
        Reply { drips, ..honest }
    })
    .await;
    let patient = SOON * 6;
    let slots = Rules { slots: 1, slice: Duration::from_millis(200), idle: patient };
    let node = Node { stall: patient, slots, ..Node::new() };
    let images = node.images();
    let attack = pull(&images, registry.name("evil:1"));
    assert!(eventually(|| node.files("incoming") == 1).await, "the base never came");
    let third = claim_of_another_registry(&images);
    tokio::time::timeout(SOON, third.acquire()).await.expect("the slice is over");
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(third);
    assert!(eventually(|| !registry.asked(&hangs).is_empty()).await, "the layer that hangs has no slot");
    let (name, nobody) = (registry.name("app:1"), anonymous());
    let pulled = tokio::time::timeout(SOON, images.pull(&name, &nobody));
    assert_eq!(pulled.await.expect("it waits for the other pull's layer").unwrap(), good.id());
    assert!(!attack.is_finished());
    attack.abort();
}

/// Each layer that hangs loses its slot to the next one, so the slots alone bound nothing.
#[tokio::test]
async fn pull_of_many_layers_that_hang_has_eight_of_them_on_their_way() {
    let texts: Vec<String> = (0..32).map(|number| format!("layer {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let image = TestImage::of_texts(&texts);
    let (shelf, blobs) = (image.shelf("app", "1"), image.blobs());
    let layers: Vec<String> = blobs.iter().map(|blob| Digest::of(blob).to_string()).collect();
    let registry = TestRegistry::start(move |request| {
        let hangs = blobs.iter().any(|blob| is_blob(request, blob));
        Reply { breaks_after: hangs.then_some((20, true)), ..from_shelf(&shelf, request) }
    })
    .await;
    let node = Node { stall: SOON * 6, ..Node::new() };
    let attack = pull(&node.images(), registry.name("app:1"));
    assert!(eventually(|| node.files("incoming") == 8).await, "{} of 8", node.files("incoming"));
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        assert_eq!(node.files("incoming"), 8);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked: Vec<bool> = layers.iter().map(|layer| !registry.asked(layer).is_empty()).collect();
    assert_eq!(asked, [[true; 8], [false; 8], [false; 8], [false; 8]].concat(), "the lowest are first");
    assert!(!attack.is_finished());
    attack.abort();
    assert_eq!(node.settled().await[2], 0);
}

#[tokio::test]
async fn failure_of_another_pull_of_the_same_blob_is_retried_alone() {
    let image = TestImage::of_texts(&["shared"]);
    let mut shelf = image.shelf("app", "1");
    image.shelve(&mut shelf, "evil", "1");
    let blob = image.blobs().remove(0);
    let layer = Digest::of(&blob).to_string();
    let registry = TestRegistry::start(move |request| {
        let honest = from_shelf(&shelf, request);
        match is_blob(request, &blob) && request.line.contains("/evil/") {
            true => Reply { breaks_after: Some((1, true)), ..honest },
            false => honest,
        }
    })
    .await;
    let node = Node::new();
    let images = node.images();
    let attack = pull(&images, registry.name("evil:1"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(images.pull(&registry.name("app:1"), &anonymous()).await.unwrap(), image.id());
    assert!(matches!(attack.await.unwrap(), Err(ImageError::Unavailable { .. })));
    let asked = registry.asked(&layer);
    assert!(asked[..3].iter().all(|request| request.line.contains("/evil/")), "it did not wait: {asked:?}");
    assert!(asked.len() == 4 && asked[3].line.contains("/app/"), "{asked:?}");
}

#[tokio::test]
async fn layer_that_several_pulls_of_one_registry_need_is_still_fetched_once() {
    let image = TestImage::of_texts(&["base"]);
    let mut shelf = image.shelf("one", "1");
    image.shelve(&mut shelf, "two", "1");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    let pulls = ["one:1", "two:1"].map(|name| pull(&images, registry.name(name)));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled.unwrap().unwrap();
    }
    assert_eq!(registry.asked(&Digest::of(&image.blobs()[0]).to_string()).len(), 1);
}
