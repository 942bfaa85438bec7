//! What pulled images are found by, what of them is on disk, and what goes with which.

use super::{Node, anonymous};
use crate::image::test_registry::{TestImage, TestRegistry, descriptor, from_shelf};
use crate::image::{Digest, ImageError, ImageUser};
use serde_json::json;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[tokio::test]
async fn pulled_image_is_listed_under_all_its_names_and_can_be_resolved() {
    let image = TestImage::of_texts(&["lower", "upper"]);
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let (node, name) = (Node::new(), registry.name("app:1"));
    let images = node.images();
    let id = images.pull(&name, &anonymous()).await.unwrap();
    assert_eq!(id, image.id());

    let by_digest = registry.name(&format!("app@{}", Digest::of(&image.manifest())));
    for query in [&name, &by_digest, &id.to_string(), &id.hex(), &id.hex()[..10].to_owned()] {
        let found = images.status(query).unwrap().unwrap();
        assert_eq!((found.id, found.repo_tags.concat()), (id, name.clone()), "{query}");
        assert_eq!(found.repo_digests.concat(), by_digest);
        assert_eq!(found.user, ImageUser::Id(1000));
        assert!(found.size > 0);
    }
    let to_run = images.resolve(&name).await.unwrap();
    assert_eq!((to_run.id, to_run.config.cmd.concat()), (id, "/bin/true".to_owned()));
    let layers = to_run.layers;
    assert!(
        layers.len() == 2
            && layers.iter().all(|layer| fs::metadata(&layer.path).unwrap().len() == layer.size)
    );
    assert_ne!(layers[0].chain_id, layers[1].chain_id);
    assert_eq!(node.kept(), [2, 2, 0, 1]);
    assert!(matches!(images.resolve("other").await, Err(ImageError::NotPresent(_))));
    assert_eq!(images.list(None).unwrap().len(), 1);
    assert_eq!(images.list(Some("other")).unwrap().len(), 0);
}

#[tokio::test]
async fn images_that_are_not_used_keep_no_configuration_in_memory() {
    let mut image = TestImage::of_texts(&["a"]);
    image.config = json!({"User": "web:www", "Env": vec![format!("A={}", "x".repeat(100_000)); 10]});
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let (node, name) = (Node::new(), registry.name("app:1"));
    let pulled = node.images();
    pulled.pull(&name, &anonymous()).await.unwrap();
    for images in [pulled, node.images()] {
        assert_eq!(images.resolve(&name).await.unwrap().config.env.len(), 10);
        let path = node.directory.path().join("images/blobs").join(image.id().hex());
        let document = fs::read(&path).unwrap();
        fs::write(&path, "{}").unwrap();
        assert!(matches!(images.resolve(&name).await, Err(ImageError::Corrupt { .. })), "it is read anew");
        fs::remove_file(&path).unwrap();
        assert!(matches!(images.resolve(&name).await, Err(ImageError::NotPresent(_))));
        let listed = images.list(None).unwrap().remove(0);
        assert_eq!((listed.id, listed.user), (image.id(), ImageUser::Name("web".to_owned())));
        fs::write(&path, document).unwrap();
    }
}

#[tokio::test]
async fn restarted_daemon_serves_the_same_images_and_drops_incomplete_ones() {
    let (a, b) = (TestImage::of_texts(&["a"]), TestImage::of_texts(&["b"]));
    let mut shelf = a.shelf("app", "a");
    b.shelve(&mut shelf, "app", "b");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    images.pull(&registry.name("app:a"), &anonymous()).await.unwrap();
    images.pull(&registry.name("app:b"), &anonymous()).await.unwrap();
    let layer = images.resolve(&registry.name("app:b")).await.unwrap().layers.remove(0).path;
    fs::remove_file(layer).unwrap();
    fs::write(node.directory.path().join("images/incoming/7"), "half").unwrap();

    let ids: Vec<_> = node.images().list(None).unwrap().into_iter().map(|image| image.id).collect();
    assert_eq!(ids, [a.id()]);
    assert_eq!(node.kept(), [2, 1, 0, 1]);
}

#[tokio::test]
async fn tag_moves_to_the_newer_image() {
    let (old, new) = (TestImage::of_texts(&["old"]), TestImage::of_texts(&["new"]));
    let shelves = [old.shelf("app", "1"), new.shelf("app", "1")];
    let pulls = Arc::new(AtomicUsize::new(0));
    let number = Arc::clone(&pulls);
    let registry = TestRegistry::start(move |r| from_shelf(&shelves[number.load(Ordering::SeqCst)], r)).await;
    let node = Node::new();
    let images = node.images();
    let name = registry.name("app:1");
    images.pull(&name, &anonymous()).await.unwrap();
    pulls.store(1, Ordering::SeqCst);
    images.pull(&name, &anonymous()).await.unwrap();
    for images in [images, node.images()] {
        assert_eq!(images.resolve(&name).await.unwrap().id, new.id());
        let old = images.status(&old.id().to_string()).unwrap().unwrap();
        assert!(old.repo_tags.is_empty() && old.repo_digests.len() == 1);
    }
}

#[tokio::test]
async fn removed_image_is_gone_with_all_names_and_shared_layers_stay() {
    let (one, two) = (TestImage::of_texts(&["base", "one"]), TestImage::of_texts(&["base", "two"]));
    let mut shelf = one.shelf("app", "1");
    one.shelve(&mut shelf, "copy", "x");
    two.shelve(&mut shelf, "app", "2");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    for name in ["app:1", "copy:x", "app:2"] {
        images.pull(&registry.name(name), &anonymous()).await.unwrap();
    }
    assert_eq!(
        registry.asked(&Digest::of(&one.blobs()[0]).to_string()).len(),
        1,
        "the base was fetched once"
    );
    assert_eq!(node.kept(), [4, 3, 0, 2]);
    images.remove(&registry.name("copy:x")).await.unwrap();
    assert!(images.status(&registry.name("app:1")).unwrap().is_none());
    assert_eq!(node.kept(), [2, 2, 0, 1]);
    images.remove(&registry.name("app:1")).await.unwrap();
    let last = two.id().hex();
    let removals = [images.remove(&last), images.remove(&last)];
    for removed in futures_util::future::join_all(removals).await {
        removed.unwrap();
    }
    assert_eq!(node.kept(), [0, 0, 0, 0]);
}

#[tokio::test]
async fn index_leads_to_the_image_for_this_machine() {
    let image = TestImage::of_texts(&["amd64"]);
    let mut entry = descriptor(&image.manifest(), "application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut other = descriptor(b"other", "application/vnd.oci.image.manifest.v1+json");
    other["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let index = json!({"schemaVersion": 2, "manifests": [other, entry]}).to_string().into_bytes();
    let mut shelf = image.shelf("app", "single");
    let digest = Digest::of(&index);
    shelf.insert("app/manifests/multi".to_owned(), index);
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    let id = images.pull(&registry.name("app:multi"), &anonymous()).await;
    assert_eq!(id.unwrap(), image.id());
    let by_index = images.resolve(&registry.name(&format!("app@{digest}"))).await.unwrap();
    assert_eq!(by_index.id, image.id(), "the digest of a name is that of its index");
}
