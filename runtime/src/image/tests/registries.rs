//! Whom a pull asks, and as whom: challenges, tokens, mirrors, registries that are down or say nothing.

use super::{Node, anonymous};
use crate::image::test_registry::{Reply, Shelf, TestImage, TestRegistry, from_shelf};
use crate::image::{ImageError, SentCredentials};
use base64::Engine as _;

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
