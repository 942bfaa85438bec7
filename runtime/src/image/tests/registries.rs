//! Whom a pull asks, and as whom: challenges, tokens, mirrors, registries that are down or say nothing.

use super::{Node, anonymous};
use crate::image::test_registry::{Reply, Shelf, TestImage, TestRegistry, descriptor, from_shelf};
use crate::image::{Digest, ImageError, SentCredentials};
use base64::Engine as _;
use serde_json::json;

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

/// A registry behind another one: what it has, behind a token service of its own.
async fn guarded(shelf: Shelf) -> TestRegistry {
    TestRegistry::start(move |request| {
        if request.line.contains("/token") {
            return Reply::new(200, r#"{"access_token": "other"}"#);
        }
        match request.headers.get("authorization").map(String::as_str) {
            Some("Bearer other") => from_shelf(&shelf, request),
            _ => {
                let realm = format!("http://{}/token", request.headers["host"]);
                let scope = "repository:real/app:pull";
                let challenge = format!("Bearer realm=\"{realm}\",service=\"other\",scope=\"{scope}\"");
                Reply::new(401, "").header("WWW-Authenticate", challenge)
            }
        }
    })
    .await
}

#[tokio::test]
async fn registry_that_redirects_to_another_with_its_own_tokens_is_answered_there_as_nobody() {
    let image = TestImage::of_texts(&["one", "two"]);
    let other = guarded(image.shelf("real/app", "1")).await;
    let there = other.address;
    let front = TestRegistry::start(move |request| {
        if !request.headers.get("authorization").is_some_and(|sent| sent.starts_with("Basic ")) {
            return Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"front\"");
        }
        let path = request.line.split([' ', '?']).nth(1).unwrap().replace("/app/", "/real/app/");
        let status = if path.contains("/manifests/") { 307 } else { 302 };
        Reply::new(status, "").header("Location", format!("http://{there}{path}"))
    })
    .await;
    let sent = SentCredentials { username: "me".to_owned(), password: "s3cret".to_owned(), ..anonymous() };
    let node = Node::knowing([&other]);
    node.images().pull(&front.name("app:1"), &sent).await.unwrap();
    assert!(
        front.asked("").iter().all(|r| r.headers.get("authorization").is_none_or(|a| a.starts_with("Basic")))
    );
    for request in other.asked("") {
        let authorization = request.headers.get("authorization").map_or("", String::as_str);
        assert!(matches!(authorization, "" | "Bearer other"), "{request:?}");
    }
    let tokens = other.asked("/token");
    assert!(tokens[0].line.contains("scope=repository%3Areal%2Fapp%3Apull&service=other"), "{tokens:?}");
    assert!(tokens.iter().all(|request| !request.headers.contains_key("authorization")), "{tokens:?}");
}

/// Documents that are no images, and behind them in one index an image that is. Gives the shelf and the
/// documents' digests.
fn behind_others(count: usize) -> (Shelf, Vec<String>) {
    let image = TestImage::of_texts(&["behind"]);
    let mut shelf = image.shelf("real/app", "single");
    let documents: Vec<_> = (0..count).map(|number| json!({"number": number}).to_string()).collect();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let entries: Vec<_> = documents.iter().map(|document| descriptor(document.as_bytes(), kind)).collect();
    let last = descriptor(&image.manifest(), kind);
    let index = json!({"manifests": entries.into_iter().chain([last]).collect::<Vec<_>>()}).to_string();
    shelf.insert("real/app/manifests/1".to_owned(), index.into_bytes());
    let digests = documents.iter().map(|document| Digest::of(document.as_bytes()).to_string()).collect();
    for document in documents {
        let path = format!("real/app/manifests/{}", Digest::of(document.as_bytes()));
        shelf.insert(path, document.into_bytes());
    }
    (shelf, digests)
}

#[tokio::test]
async fn tokens_of_places_that_redirects_lead_to_are_kept_in_bounds() {
    for (places, tokens) in [(8, 1), (10, 2)] {
        let (shelf, documents) = behind_others(2 * places);
        let mut others = Vec::new();
        for _ in 0..places {
            others.push(guarded(shelf.clone()).await);
        }
        let addresses: Vec<_> = others.iter().map(|other| other.address).collect();
        let front = TestRegistry::start(move |request| {
            let path = request.line.split([' ', '?']).nth(1).unwrap();
            match documents.iter().position(|digest| path.ends_with(digest.as_str())) {
                Some(number) => Reply::new(307, "")
                    .header("Location", format!("http://{}{path}", addresses[number % addresses.len()])),
                None => from_shelf(&shelf, request),
            }
        })
        .await;
        let node = Node::knowing(&others);
        node.images().pull(&front.name("real/app:1"), &anonymous()).await.unwrap();
        // Each place is led to twice, the others in between.
        for other in &others {
            assert_eq!(other.asked("/token").len(), tokens, "of {places} places");
        }
    }
}

#[tokio::test]
async fn token_that_no_header_has_room_for_is_refused() {
    for (length, words) in [(60_000, "refuses"), (70_000, "sent more than 65536 bytes")] {
        let registry = TestRegistry::start(move |request| match request.line.contains("/token") {
            true => Reply::new(200, json!({"token": "t".repeat(length)}).to_string()),
            false if request.headers.contains_key("authorization") => Reply::new(403, "refuses"),
            false => {
                let realm = format!("http://{}/token", request.headers["host"]);
                Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
            }
        })
        .await;
        let error = Node::new().images().pull(&registry.name("app:1"), &anonymous()).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn registry_elsewhere_that_wants_a_password_or_has_a_bad_token_service_is_told_with_its_address() {
    for (challenge, words) in [
        ("Basic realm=\"other\"", "wants a name and a password"),
        ("Bearer realm=\"no address\"", "names no usable token service"),
        ("", "refuses without saying how"),
    ] {
        let other =
            TestRegistry::start(move |_| Reply::new(401, "").header("WWW-Authenticate", challenge)).await;
        let there = other.address;
        let front = TestRegistry::start(move |_| {
            Reply::new(307, "").header("Location", format!("http://{there}/v2/x/manifests/1"))
        })
        .await;
        let sent =
            SentCredentials { username: "me".to_owned(), password: "s3cret".to_owned(), ..anonymous() };
        let node = Node::knowing([&other]);
        let error = node.images().pull(&front.name("app:1"), &sent).await.unwrap_err().to_string();
        assert!(error.contains(&format!("redirects to http://{there}, which {words}")), "{error}");
        assert!(other.asked("").iter().all(|request| !request.headers.contains_key("authorization")));
    }
}

#[tokio::test]
async fn registries_that_redirect_to_each_other_are_given_up() {
    let ports = std::sync::Arc::new(std::sync::Mutex::new(Vec::<std::net::SocketAddr>::new()));
    let known = std::sync::Arc::clone(&ports);
    let answer = move |request: &crate::image::test_registry::Request| {
        let host = &request.headers["host"];
        if request.line.contains("/token") {
            return Reply::new(200, r#"{"token": "t"}"#);
        }
        if request.headers.contains_key("authorization") {
            let other = known.lock().unwrap().iter().find(|address| address.to_string() != *host).copied();
            return Reply::new(307, "")
                .header("Location", format!("http://{}/v2/app/manifests/1", other.unwrap()));
        }
        Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\""))
    };
    let (one, two) = (TestRegistry::start(answer.clone()).await, TestRegistry::start(answer).await);
    ports.lock().unwrap().extend([one.address, two.address]);
    let node = Node::knowing([&one, &two]);
    let error = node.images().pull(&one.name("app:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert!(one.asked("").len() + two.asked("").len() < 20);
}

#[tokio::test]
async fn identity_token_goes_to_no_other_host() {
    let thief = TestRegistry::start(|_| Reply::new(200, r#"{"token": "t"}"#)).await;
    let there = thief.address;
    let registry = TestRegistry::start(move |request| {
        if request.line.contains("/token") {
            return Reply::new(307, "").header("Location", format!("http://{there}/token"));
        }
        let realm = format!("http://{}/token", request.headers["host"]);
        Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    })
    .await;
    let sent = SentCredentials { identity_token: "r3fresh".to_owned(), ..anonymous() };
    let error = Node::new().images().pull(&registry.name("app:1"), &sent).await.unwrap_err().to_string();
    assert!(thief.asked("").is_empty());
    assert!(error.contains("another host") && !error.contains("r3fresh"), "{error}");
}

#[tokio::test]
async fn pause_until_a_date_is_made() {
    let image = TestImage::of_texts(&["later"]);
    let shelf = image.shelf("app", "1");
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let registry = TestRegistry::start(move |request| {
        if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            let date =
                httpdate::fmt_http_date(std::time::SystemTime::now() + std::time::Duration::from_secs(2));
            return Reply::new(429, "").header("Retry-After", date);
        }
        from_shelf(&shelf, request)
    })
    .await;
    let begin = std::time::Instant::now();
    Node::new().images().pull(&registry.name("app:1"), &anonymous()).await.unwrap();
    // The date has whole seconds, of which the first has begun.
    assert!(begin.elapsed() > std::time::Duration::from_millis(900), "{:?}", begin.elapsed());
}
