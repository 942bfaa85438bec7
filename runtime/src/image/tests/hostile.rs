//! Images and registries that want more than they may have: memory, disk, processor time, or what only this node reaches.

use super::{Node, anonymous};
use crate::config::RegistryConfig;
use crate::image::content::Space;
use crate::image::records::{LARGEST_LIST, MOST_NAMES, Record};
use crate::image::test_registry::{Reply, Shelf, TestImage, TestRegistry, from_shelf};
use crate::image::{Digest, ImageError, ImageUser, Images, ListedImage, SentCredentials};
use isopod_protocols::cri::{Image, Int64Value, ListImagesResponse};
use prost::Message;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

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
async fn image_without_layers_leaves_the_reserve() {
    let image = TestImage::of_texts(&[]);
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let node = Node { reserve: 50 << 20, ..Node::new() };
    let with_free = |space: fn(&std::path::Path) -> std::io::Result<Space>| {
        let mut images = node.images();
        let content = &mut Arc::get_mut(&mut images.0).unwrap().content;
        Arc::get_mut(content).unwrap().pretend(space);
        images
    };
    let full = with_free(|_| Ok(Space { whole: 1 << 30, free: 50 << 20 }));
    let error = full.pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::DiskReserve { reserve_mib: 50, .. }), "{error}");
    assert_eq!(node.settled().await, [0, 0, 0, 0]);
    let roomy = with_free(|_| Ok(Space { whole: 1 << 30, free: 51 << 20 }));
    roomy.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    let full = with_free(|_| Ok(Space { whole: 1 << 30, free: 0 }));
    full.pull(&registry.name("app:1"), &anonymous()).await.expect("it is here, and wants no room");
}

/// Bytes of an answer that lists images.
fn answered(images: &[ListedImage]) -> usize {
    let item = |image: &ListedImage| {
        let (uid, username) = match &image.user {
            ImageUser::Unset => (None, String::new()),
            ImageUser::Id(value) => (Some(Int64Value { value: *value }), String::new()),
            ImageUser::Name(name) => (None, name.clone()),
        };
        let (repo_tags, repo_digests) = (image.repo_tags.clone(), image.repo_digests.clone());
        let id = image.id.to_string();
        Image { id, repo_tags, repo_digests, size: image.size, uid, username, ..Image::default() }
    };
    ListImagesResponse { images: images.iter().map(item).collect() }.encoded_len()
}

/// Gives the only image of a node other names, and writes as many more like it as there are `copies`, as a
/// daemon does.
fn multiply(images: &Images, copies: usize, name: impl Fn(usize, usize) -> String) {
    let record = images.state().records.all().next().unwrap().clone();
    for copy in 0..=copies {
        let mut record = record.clone();
        if copy > 0 {
            let configuration = json!({"config": {"User": format!("{copy}{}", "u".repeat(250))}}).to_string();
            record.id = Digest::of(configuration.as_bytes());
            images.0.content.put_blob(&record.id, configuration.as_bytes()).unwrap();
        }
        record.repo_tags = (1..MOST_NAMES).map(|number| name(copy, number)).collect();
        images.0.documents.put(&record.id.hex(), &record).unwrap();
    }
}

#[tokio::test]
async fn list_of_all_images_fits_into_one_answer() {
    let image = TestImage::of_texts(&["a"]);
    let mut shelf = image.shelf("app", "1");
    let mut last = TestImage::of_texts(&["a"]);
    last.config = json!({"User": "u".repeat(256)});
    last.shelve(&mut shelf, "app", "last");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    images.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    let long = "x".repeat(1000);
    // an older daemon had no bound: one image too many for it
    multiply(&images, 32, |copy, number| format!("r.test/{copy}/{number}/{long}"));

    let images = node.images();
    let error = images.pull(&registry.name("app:last"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::TooManyImages { .. }), "{error}");
    assert!(error.to_string().contains("remove images that are not used"), "{error}");
    let listed = images.list(None).unwrap();
    assert_eq!(listed.len(), 33);
    images
        .pull(&registry.name(&format!("app@{}", Digest::of(&image.manifest()))), &anonymous())
        .await
        .unwrap();

    let other = listed.iter().find(|other| other.id != image.id()).unwrap();
    images.remove(&other.id.to_string()).await.unwrap();
    images.pull(&registry.name("app:last"), &anonymous()).await.unwrap();
    let answer = answered(&images.list(None).unwrap());
    assert!((LARGEST_LIST * 9 / 10..LARGEST_LIST).contains(&answer), "{answer}");
}

#[tokio::test]
async fn layers_that_all_images_name_are_bounded() {
    let image = TestImage::of_texts(&["a"]);
    let mut shelf = image.shelf("app", "1");
    TestImage::of_texts(&["b"]).shelve(&mut shelf, "app", "2");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    images.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    {
        let mut state = images.state();
        let record = state.records.all().next().unwrap().clone();
        let layers = vec![record.layers[0].clone(); 256];
        let many = (0..8000u32).map(|number| Record {
            id: Digest::of(&number.to_le_bytes()),
            repo_tags: [format!("r.test/{number}:1")].into(),
            layers: layers.clone(),
            ..record.clone()
        });
        let many: Vec<_> = many.collect();
        state.users.extend(many.iter().map(|record| (record.id, ImageUser::Unset)));
        state.records.replace(many);
    }
    let error = images.pull(&registry.name("app:2"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::TooManyImages { .. }), "{error}");
    assert_eq!(images.list(None).unwrap().len(), 8001);
}

#[tokio::test]
async fn names_of_one_image_are_bounded_and_those_that_one_registry_heaps_up_make_room() {
    let image = TestImage::of_texts(&["a"]);
    let mut shelf = image.shelf("app", "1");
    image.shelve(&mut shelf, "app", "2");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    images.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    let (known, by_digest) =
        (registry.name("app:1"), registry.name(&format!("app@{}", Digest::of(&image.manifest()))));
    multiply(
        &images,
        0,
        |_, number| if number == 1 { known.clone() } else { format!("r.test/app:{number}") },
    );

    let images = node.images();
    let names = |images: &Images| {
        let listed = images.list(None).unwrap().remove(0);
        listed.repo_tags.len() + listed.repo_digests.len()
    };
    assert_eq!(names(&images), MOST_NAMES);
    images.pull(&registry.name("app:2"), &anonymous()).await.unwrap();
    images.pull(&known, &anonymous()).await.unwrap();
    for images in [images, node.images()] {
        assert_eq!(names(&images), MOST_NAMES);
        for kept in [&known, &registry.name("app:2"), &by_digest] {
            assert!(images.status(kept).unwrap().is_some(), "{kept}");
        }
    }
    assert_eq!(node.settled().await, [2, 1, 0, 1]);
}

#[tokio::test]
async fn images_that_fill_the_list_make_room_for_those_of_other_registries() {
    let image = TestImage::of_texts(&["a"]);
    let mut shelf = image.shelf("app", "1");
    let other = TestImage::of_texts(&["b"]);
    other.shelve(&mut shelf, "app", "2");
    let registry = TestRegistry::of(shelf).await;
    let node = Node::new();
    let images = node.images();
    images.pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    let name = |number: u32, tag: u32| format!("evil.test/{number}/{}:{tag}", "x".repeat(250));
    let id = |number: u32| Digest::of(&number.to_le_bytes());
    let record = images.state().records.all().next().unwrap().clone();
    let shared = record.repo_tags.first().unwrap().clone();
    for number in 0..130 {
        let mut repo_tags: BTreeSet<_> = (0..255).map(|tag| name(number, tag)).collect();
        if number == 3 {
            repo_tags.insert("good.test/app:3".to_owned());
        }
        let (id, pulled_at) = (id(number), number.into());
        let evil = Record { id, repo_tags, repo_digests: BTreeSet::new(), pulled_at, ..record.clone() };
        images.0.documents.put(&id.hex(), &evil).unwrap();
        let mut state = images.state();
        state.users.insert(id, ImageUser::Unset);
        state.records.replace(vec![evil]);
    }
    let refused = images.pull(&registry.name("app:2"), &anonymous()).await.unwrap_err();
    assert!(matches!(refused, ImageError::TooManyImages { .. }), "{refused}");

    // two containers: one was made by the id of an image, the other by a name
    images.make_room(|| vec![id(0).to_string(), name(1, 7)]).await.unwrap();
    images.pull(&registry.name("app:2"), &anonymous()).await.unwrap();
    images.make_room(|| panic!("there is room")).await.unwrap();
    let names = |number| {
        let status = images.status(&id(number).to_string()).unwrap();
        status.map(|image| image.repo_tags)
    };
    assert_eq!(names(0), Some(vec![]));
    assert_eq!(names(1), Some(vec![name(1, 7)]));
    assert_eq!(names(2), None);
    assert_eq!(names(3), Some(vec!["good.test/app:3".to_owned()]));
    assert_eq!(names(129).map(|names| names.len()), Some(255));
    assert_eq!(images.status(&shared).unwrap().unwrap().id, image.id());
    assert!(images.0.documents.get(&id(2).hex()).unwrap().is_none(), "it is on disk");
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
            let node = Node::knowing([&answer]);
            let error = node.images().pull(&registry.name("app:1"), &sent).await.unwrap_err();
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
        let node = Node::knowing([&inner]);
        let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
        let told = error.to_string();
        let expected = format!("redirects to http://{there}, which answers status 403");
        assert!(told.contains(&expected) && !told.contains("internal"), "{told}");
    }
    assert_eq!(inner.asked("").len(), 2);
}

#[tokio::test]
async fn why_another_place_cannot_be_reached_is_not_told() {
    // nobody else gets a port of this address
    let closed = format!("127.0.0.2:{}", TestRegistry::of(Shelf::new()).await.address.port());
    let (there, registries) = (closed.clone(), [(closed.clone(), RegistryConfig::default())].into());
    let registry = TestRegistry::start(move |request| match request.line.contains("/moved/") {
        true => Reply::new(307, "").header("Location", format!("http://{there}/secret")),
        false => {
            Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"http://{there}/token\""))
        }
    })
    .await;
    let node = Node { registries, ..Node::new() };
    let images = node.images();
    for name in ["moved/app:1", "app:1"] {
        let error = images.pull(&registry.name(name), &anonymous()).await.unwrap_err();
        assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
        let told = error.to_string();
        assert!(told.contains(&format!("leads to http://{closed}, which cannot be reached")), "{told}");
        assert!(!told.to_lowercase().contains("refused"), "{told}");
    }
}

/// A registry with that manifest of the image in place of its own, which leads whoever asks for the blob `guess` to
/// another place.
async fn guesses(image: &TestImage, manifest: &serde_json::Value, there: SocketAddr) -> TestRegistry {
    let mut shelf = image.shelf("app", "1");
    shelf.insert("app/manifests/1".to_owned(), manifest.to_string().into_bytes());
    let guessed = Digest::of(b"guess").to_string();
    TestRegistry::start(move |request| match request.line.contains(&guessed) {
        true => Reply::new(307, "").header("Location", format!("http://{there}/secret")),
        false => from_shelf(&shelf, request),
    })
    .await
}

#[tokio::test]
async fn length_of_what_a_registry_redirects_to_is_not_told() {
    let inner = TestRegistry::start(|_| Reply::new(200, "internal words")).await;
    let (there, image) = (inner.address, TestImage::of_texts(&["a"]));
    let guess = json!({"mediaType": "", "digest": Digest::of(b"guess"), "size": 1000});
    for of_layer in [false, true] {
        let mut document: serde_json::Value = serde_json::from_slice(&image.manifest()).unwrap();
        match of_layer {
            true => document["layers"][0] = guess.clone(),
            false => document["config"] = guess.clone(),
        }
        let registry = guesses(&image, &document, there).await;
        let node = Node::knowing([&inner]);
        let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err().to_string();
        assert!(error.contains("broke off") && !error.contains("14 of"), "{error}");
    }
}

#[tokio::test]
async fn digest_of_what_a_registry_redirects_to_is_not_told() {
    const SECRET: &[u8] = b"internal words";
    let inner = TestRegistry::start(|_| Reply::new(200, SECRET)).await;
    let there = inner.address;
    let image = TestImage::of_texts(&["a"]);
    let guess = json!({"mediaType": "", "digest": Digest::of(b"guess"), "size": SECRET.len()});
    let mut of_config: serde_json::Value = serde_json::from_slice(&image.manifest()).unwrap();
    let mut of_layer = of_config.clone();
    of_config["config"] = guess.clone();
    of_layer["layers"][0] = guess.clone();
    let of_manifest = json!({"manifests": [guess]});
    for document in [of_config, of_layer, of_manifest] {
        let registry = guesses(&image, &document, there).await;
        let node = Node::knowing([&inner]);
        let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err().to_string();
        let digest = Digest::of(SECRET).hex();
        assert!(error.contains(&Digest::of(b"guess").hex()) && !error.contains(&digest[..8]), "{error}");
        assert_eq!(node.settled().await, [0, 0, 0, 0]);
    }
}

#[tokio::test]
async fn blob_is_not_pieced_together_from_two_places() {
    let image = TestImage::of_texts(&["a"]);
    // The registry knows the beginning, the other place has the rest: together they are what the registry
    // guessed.
    for blob in [image.config_document(), image.blobs().remove(0)] {
        let other = TestRegistry::of([("secret".to_owned(), blob.clone())].into()).await;
        let (there, shelf) = (other.address, image.shelf("app", "1"));
        let guessed = Digest::of(&blob).to_string();
        let registry = TestRegistry::start(move |request| {
            match (request.line.contains(&guessed), request.headers.contains_key("range")) {
                (true, true) => Reply::new(307, "").header("Location", format!("http://{there}/v2/secret")),
                (true, false) => Reply { breaks_after: Some((10, false)), ..from_shelf(&shelf, request) },
                (false, _) => from_shelf(&shelf, request),
            }
        })
        .await;
        let node = Node::knowing([&other]);
        let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
        assert!(matches!(error, ImageError::BrokenOff { .. } | ImageError::Unavailable { .. }), "{error}");
        assert!(error.to_string().starts_with("RegistryUnavailable: "), "{error}");
        assert!(!other.asked("secret").is_empty(), "it was not led there");
        assert_eq!(node.settled().await, [0, 0, 0, 0]);
    }
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
