//! The image service against a registry on loopback, with a converter that copies: no root, no network, no mkfs.erofs.

use super::test_registry::{Reply, Shelf, TestImage, TestRegistry, descriptor, from_shelf};
use super::*;
use base64::Engine as _;
use serde_json::json;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Node {
    directory: tempfile::TempDir,
    registries: BTreeMap<String, RegistryConfig>,
    program: &'static str,
}

impl Node {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), registries: BTreeMap::new(), program: "copies" }
    }

    fn with_mirrors(host: &str, mirrors: &[String]) -> Self {
        let section = RegistryConfig { mirrors: mirrors.to_vec(), mirrors_only: true, ..Default::default() };
        Self { registries: [(host.to_owned(), section)].into(), ..Self::new() }
    }

    /// The service as a daemon that has just started has it.
    fn images(&self) -> Images {
        let converter = Converter {
            program: PathBuf::from(self.program),
            launcher: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/image/testdata/convert.sh")),
            uid: nix::unistd::geteuid().as_raw(),
            largest_layer: 1 << 20,
            patience: Duration::from_millis(500),
            slots: Semaphore::new(2),
        };
        let patience = Patience {
            stall: Duration::from_millis(300),
            first_pause: Duration::from_millis(1),
            attempts: 3,
        };
        let registry = Registry::open(self.registries.clone(), patience).unwrap();
        Images::open_with(&self.directory.path().join("images"), converter, registry).unwrap()
    }

    fn files(&self, name: &str) -> usize {
        fs::read_dir(self.directory.path().join("images").join(name)).unwrap().count()
    }

    /// How many blobs, layers, half-done files and records there are.
    fn kept(&self) -> [usize; 4] {
        ["blobs", "layers", "incoming", "records"].map(|name| self.files(name))
    }

    /// As [`Self::kept`], once what runs in the background has settled.
    async fn settled(&self) -> [usize; 4] {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.files("incoming") == 0 {
                break;
            }
        }
        self.kept()
    }
}

fn anonymous() -> SentCredentials {
    SentCredentials::default()
}

fn layer_of<'a>(shelf: &'a Shelf, image: &TestImage) -> (String, &'a Vec<u8>) {
    let digest = Digest::of(&image.blobs()[0]);
    (digest.to_string(), &shelf[&format!("app/blobs/{digest}")])
}

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
        let found = images.resolve(query).unwrap();
        assert_eq!((found.id, found.repo_tags.concat()), (id, name.clone()), "{query}");
        assert_eq!(found.repo_digests.concat(), by_digest);
        assert_eq!(found.user, ImageUser::Id(1000));
        assert!(found.size > 0);
    }
    let layers = images.resolve(&name).unwrap().layers;
    let contents: Vec<_> = layers.iter().map(|layer| fs::read(&layer.path).unwrap()).collect();
    assert_eq!(contents, image.layers);
    assert_eq!(node.kept(), [2, 2, 0, 1]);
    assert!(matches!(images.resolve("other"), Err(ImageError::NotPresent(_))));
    assert_eq!(images.list(None).unwrap().len(), 1);
    assert_eq!(images.list(Some("other")).unwrap().len(), 0);
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
    let layer = images.resolve(&registry.name("app:b")).unwrap().layers.remove(0).path;
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
        assert_eq!(images.resolve(&name).unwrap().id, new.id());
        let old = images.resolve(&old.id().to_string()).unwrap();
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
    let by_index = images.resolve(&registry.name(&format!("app@{digest}"))).unwrap();
    assert_eq!(by_index.id, image.id(), "the digest of a name is that of its index");
}

#[tokio::test]
async fn bearer_challenge_is_answered_by_way_of_the_token_service() {
    let image = TestImage::of_texts(&["secret"]);
    let shelf = image.shelf("app", "1");
    let registry = TestRegistry::start(move |request| {
        let authorization = request.headers.get("authorization").map(String::as_str);
        if request.line.contains("/token") {
            let good = format!("Basic {}", base64::prelude::BASE64_STANDARD.encode("me:pw"));
            return match authorization {
                Some(sent) if sent == good => Reply::new(200, r#"{"token": "t1"}"#),
                _ if request.body.contains("refresh_token=r1") => {
                    Reply::new(200, r#"{"access_token": "t1"}"#)
                }
                _ => Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}"#),
            };
        }
        if authorization == Some("Bearer t1") || authorization == Some("Bearer direct") {
            return from_shelf(&shelf, request);
        }
        let realm = format!("http://{}/token", request.headers["host"]);
        let challenge = format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"x\"");
        Reply::new(401, "").header("WWW-Authenticate", challenge)
    })
    .await;
    let pull = |sent: SentCredentials| {
        let name = registry.name("app:1");
        async move { Node::new().images().pull(&name, &sent).await }
    };
    let basic = |password: &str| SentCredentials {
        username: "me".to_owned(),
        password: password.to_owned(),
        ..anonymous()
    };
    pull(basic("pw")).await.unwrap();
    assert!(registry.asked("/token")[0].line.contains("scope=repository%3Aapp%3Apull&service=test"));
    assert_eq!(registry.asked("/token").len(), 1, "one token serves the whole pull");
    let error = pull(basic("bad")).await.unwrap_err();
    assert!(matches!(&error, ImageError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("wrong password") && !error.to_string().contains("bad"), "{error}");
    pull(SentCredentials { identity_token: "r1".to_owned(), ..anonymous() }).await.unwrap();
    pull(SentCredentials { registry_token: "direct".to_owned(), ..anonymous() }).await.unwrap();
    assert!(matches!(pull(anonymous()).await, Err(ImageError::Unauthorized { .. })));
}

#[tokio::test]
async fn basic_challenge_wants_name_and_password() {
    let image = TestImage::of_texts(&["secret"]);
    let shelf = image.shelf("app", "1");
    let registry = TestRegistry::start(move |request| match request.headers.get("authorization") {
        Some(sent) if sent.starts_with("Basic ") => from_shelf(&shelf, request),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"r\""),
    })
    .await;
    let node = Node::new();
    let images = node.images();
    let error = images.pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(error.to_string().contains("wants a name and a password"), "{error}");
    let auth = base64::prelude::BASE64_STANDARD.encode("me:pw");
    images.pull(&registry.name("app:1"), &SentCredentials { auth, ..anonymous() }).await.unwrap();
}

#[tokio::test]
async fn mirrors_are_asked_in_turn_and_see_no_credentials() {
    let image = TestImage::of_texts(&["mirrored"]);
    let empty = TestRegistry::of(Shelf::new()).await;
    let full = TestRegistry::of(image.shelf("hub/library/app", "1")).await;
    let mirrors = [format!("http://{}", empty.address), format!("http://{}/hub", full.address)];
    let mirrored = Node::with_mirrors("docker.io", &mirrors);
    let images = mirrored.images();
    let sent = SentCredentials { username: "me".to_owned(), ..anonymous() };
    images.pull("app:1", &sent).await.unwrap();
    assert_eq!(images.list(None).unwrap()[0].repo_tags, ["docker.io/library/app:1"]);
    assert_eq!(empty.asked("").len(), 1, "blobs are asked for where the manifest was");
    assert!(full.asked("").iter().all(|request| request.line.contains("ns=docker.io")));
    assert!(full.asked("").iter().all(|request| !request.headers.contains_key("authorization")));
    let error = images.pull("app:2", &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn registry_that_is_down_is_told_with_kubelets_prefix() {
    let gone = TestRegistry::of(Shelf::new()).await.address.port();
    let mirrors = [format!("http://127.0.0.2:{gone}")];
    let mirrored = Node::with_mirrors("docker.io", &mirrors);
    let images = mirrored.images();
    let error = images.pull("app", &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(error.to_string().starts_with("RegistryUnavailable: "), "{error}");
    assert!(error.to_string().to_lowercase().contains("refused"), "{error}");
}

#[tokio::test]
async fn registry_that_sends_nothing_is_given_up() {
    let image = TestImage::of_texts(&["slow"]);
    let shelf = image.shelf("app", "1");
    let registry = TestRegistry::start(move |request| {
        let mut reply = from_shelf(&shelf, request);
        reply.breaks_after = Some((3, true));
        reply
    })
    .await;
    let node = Node::new();
    let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("timed out"), "{error}");
    assert_eq!(registry.asked("manifests").len(), 3);
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

fn incompressible(length: usize) -> String {
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
        let layer = images.list(None).unwrap().remove(0).layers.remove(0);
        assert_eq!(fs::read(layer.path).unwrap(), image.layers[0]);
        let requests = registry.asked(&layer_of(&image.shelf("app", "1"), &image).0);
        assert_eq!(requests[1].headers["range"], "bytes=100000-");
    }
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
    assert!(error.to_string().contains("in place of"), "{error}");
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

#[tokio::test]
async fn converter_that_fails_complains_or_hangs_is_told_and_leaves_nothing() {
    let image = TestImage::of_texts(&["x"]);
    let registry = TestRegistry::of(image.shelf("app", "1")).await;
    let said = [
        ("fails", "no such format"),
        ("complains", "failed to write"),
        ("hangs", "got nowhere"),
        ("unjailed", "jail cannot be closed: make namespaces"),
    ];
    for (program, said) in said {
        let node = Node { program, ..Node::new() };
        let error = node.images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
        assert!(error.to_string().contains(said), "{program}: {error}");
        assert_eq!(node.kept(), [0, 0, 0, 0], "{program}");
    }
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
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(node.kept(), [2, 0, 1, 0], "the pull is in the middle of its layer");
    only.abort();
    assert_eq!(node.settled().await, [0, 0, 0, 0]);

    let (first, second) = (pull(), pull());
    tokio::time::sleep(Duration::from_millis(150)).await;
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), image.id());
    assert_eq!(node.settled().await, [2, 1, 0, 1]);
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
