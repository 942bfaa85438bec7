//! Layers on their way: broken off, corrupt, wanted by several pulls at once, or by one that is gone.

use super::slots::pull;
use super::{Node, anonymous};
use crate::image::test_registry::{Reply, Shelf, TestImage, TestRegistry, from_shelf};
use crate::image::{Digest, ImageError};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn layer_of<'a>(shelf: &'a Shelf, image: &TestImage) -> (String, &'a Vec<u8>) {
    let digest = Digest::of(&image.blobs()[0]);
    (digest.to_string(), &shelf[&format!("app/blobs/{digest}")])
}

/// Serves layers in pieces of `piece` bytes, each followed by a break.
async fn crumbling(image: &TestImage, piece: usize, knows_ranges: bool) -> TestRegistry {
    let shelf = image.shelf("app", "1");
    let (layer, _) = layer_of(&shelf, image);
    let served = AtomicUsize::new(0);
    TestRegistry::start(move |request| {
        let mut request = request.clone();
        if !knows_ranges {
            request.headers.remove("range");
        }
        let mut reply = from_shelf(&shelf, &request);
        if request.line.contains(&layer) {
            let already = if knows_ranges { 0 } else { served.fetch_add(piece, Ordering::SeqCst) };
            reply.breaks_after = Some((already + piece, false));
        }
        reply
    })
    .await
}

/// Removes a file as the kernel removes one of many gigabytes.
fn remove_slowly(path: &Path) -> std::io::Result<()> {
    std::thread::sleep(Duration::from_secs(1));
    fs::remove_file(path)
}

#[tokio::test]
async fn file_of_a_failed_layer_is_removed_while_the_daemon_serves_others() {
    let image = TestImage::of_texts(&["a"]);
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let node = Node { converter: "fails", ..Node::new() };
    let mut images = node.images();
    let content = &mut Arc::get_mut(&mut images.0).unwrap().content;
    Arc::get_mut(content).unwrap().pretend_to_remove(remove_slowly);
    let begun = Instant::now();
    let pull = pull(&images, registry.name("app:1"));
    // this test has one thread, on which the pull runs too
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !pull.is_finished() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    assert!(matches!(pull.await.unwrap(), Err(ImageError::BadLayer { .. })));
    assert!(begun.elapsed() > Duration::from_secs(1), "nothing was removed");
    assert!(longest < Duration::from_millis(700), "nobody was served for {longest:?}");
}

pub fn incompressible(length: usize) -> String {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        char::from(b' ' + u8::try_from((state >> 40) % 90).unwrap())
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn broken_layer_is_taken_up_where_it_broke() {
    let image = TestImage::of_texts(&[&incompressible(300_000)]);
    for knows_ranges in [true, false] {
        let registry = crumbling(&image, 100_000, knows_ranges).await;
        let node = Node::new();
        let images = node.images();
        images.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
        assert_eq!(images.layers(&image.id()).len(), 1);
        let requests = registry.asked(&layer_of(&image.shelf("app", "1"), &image).0);
        assert_eq!(requests[1].headers["range"], "bytes=100000-");
    }
}

#[tokio::test]
async fn layer_that_another_host_would_take_up_is_begun_anew() {
    let image = TestImage::of_texts(&[&incompressible(300_000)]);
    let shelf = image.shelf("app", "1");
    let (layer, _) = layer_of(&shelf, &image);
    let breaking = crumbling(&image, 100_000, true).await;
    let whole = TestRegistry::of(shelf.clone()).await;
    let hosts = [breaking.address, whole.address];
    let (number, moved) = (AtomicUsize::new(0), layer.clone());
    let registry = TestRegistry::start(move |request| match request.line.contains(&moved) {
        true => {
            let host = hosts[number.fetch_add(1, Ordering::SeqCst).min(1)];
            Reply::new(307, "").header("Location", format!("http://{host}/v2/app/blobs/{moved}"))
        }
        false => from_shelf(&shelf, request),
    })
    .await;
    let node = Node::knowing([&breaking, &whole]);
    node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    let ranges = |registry: &TestRegistry| -> Vec<_> {
        registry.asked(&layer).iter().map(|request| request.headers.get("range").cloned()).collect()
    };
    assert_eq!(ranges(&breaking), [None]);
    assert_eq!(ranges(&whole), [Some("bytes=100000-".to_owned()), None]);
    assert_eq!(node.kept(), [2, 1, 0, 1]);
}

#[tokio::test]
async fn layer_that_one_mirror_breaks_off_is_begun_anew_at_the_next() {
    let image = TestImage::of_texts(&[&incompressible(100_000)]);
    let good = image.shelf("library/app", "1");
    let mut of_bad = image.shelf("app", "1");
    image.shelve(&mut of_bad, "library/app", "1");
    let (layer, _) = layer_of(&of_bad, &image);
    let moved = layer.clone();
    let bad = TestRegistry::start(move |request| {
        let reply = from_shelf(&of_bad, request);
        match (request.line.contains(&moved), request.headers.contains_key("range")) {
            (true, false) => Reply { breaks_after: Some((50_000, false)), ..reply },
            (true, true) => Reply::new(404, ""),
            (false, _) => reply,
        }
    })
    .await;
    let good = TestRegistry::of(good).await;
    let mirrors = [&bad, &good].map(|registry| format!("http://{}", registry.address));
    Node::with_mirrors("docker.io", &mirrors).images().pull("app:1", &anonymous()).await.unwrap();
    let asked = good.asked(&layer);
    assert!(asked.len() == 1 && !asked[0].headers.contains_key("range"), "{asked:?}");
}

#[tokio::test]
async fn layer_that_never_gets_on_is_given_up_and_leaves_nothing() {
    let image = TestImage::of_texts(&[&incompressible(100_000)]);
    let registry = crumbling(&image, 10, true).await;
    let node = Node::new();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("broke off after 30 of"), "{error}");
    assert_eq!(node.kept(), [0, 0, 0, 0]);
}

#[tokio::test]
async fn corrupt_layer_is_fetched_anew_from_the_next_place() {
    let image = TestImage::of_texts(&["good"]);
    let good = image.shelf("library/app", "1");
    let mut bad = good.clone();
    let layer = Digest::of(&image.blobs()[0]);
    bad.get_mut(&format!("library/app/blobs/{layer}")).unwrap()[20] ^= 1;
    let (bad, good) = (TestRegistry::of(bad).await, TestRegistry::of(good).await);
    let mirrors = [&bad, &good].map(|registry| format!("http://{}", registry.address));
    let mirrored = Node::with_mirrors("docker.io", &mirrors);
    let images = mirrored.images();
    images.pull("app:1", &anonymous()).await.unwrap();

    let node = Node::with_mirrors("docker.io", &mirrors[..1]);
    let error = node.images().pull("app:1", &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { expected, .. } if expected == layer), "{error}");
    assert_eq!(node.kept(), [0, 0, 0, 0]);
}

#[tokio::test]
async fn concurrent_pulls_fetch_each_layer_once() {
    let (one, two) = (TestImage::of_texts(&["base", "one"]), TestImage::of_texts(&["base", "two"]));
    let mut shelf = one.shelf("app", "1");
    two.shelve(&mut shelf, "app", "2");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    let names = ["app:1", "app:2", "app:1", "app:2", "app:1"].map(|name| registry.name(name));
    let credentials = anonymous();
    let pulls = names.iter().map(|name| images.pull(name, &credentials));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled.unwrap();
    }
    for blob in one.blobs().iter().chain(&two.blobs()) {
        assert_eq!(registry.asked(&Digest::of(blob).to_string()).len(), 1);
    }
    assert_eq!(images.list(None).unwrap().len(), 2);
}

#[tokio::test]
async fn cancelled_pull_leaves_nothing_and_does_not_stop_another() {
    let image = TestImage::of_texts(&[&incompressible(200_000)]);
    let shelf = image.shelf("app", "1");
    let (layer, _) = layer_of(&shelf, &image);
    let tries = AtomicUsize::new(0);
    let registry = TestRegistry::start(move |request| {
        let mut reply = from_shelf(&shelf, request);
        if request.line.contains(&layer) && tries.fetch_add(1, Ordering::SeqCst) < 2 {
            reply.breaks_after = Some((1000, true));
        }
        reply
    })
    .await;
    let node = Node::new();
    let images = node.images();
    let pull = || {
        let (images, name) = (images.clone(), registry.name("app:1"));
        tokio::spawn(async move { images.pull(&name, &anonymous()).await })
    };
    let only = pull();
    // In the middle of its layer.
    node.until_kept([2, 0, 1, 0]).await;
    only.abort();
    assert_eq!(node.settled().await, [0, 0, 0, 0]);

    let (first, second) = (pull(), pull());
    tokio::time::sleep(Duration::from_millis(150)).await;
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), image.id());
    assert_eq!(node.settled().await, [2, 1, 0, 1]);
}
