//! Names of images as users and kubelet write them: `busybox`, `quay.io/a/b:tag`, `repo@sha256:...`, an image id.
//!
//! ```text
//!   [host[:port]/]part[/part]...[:tag][@digest]
//! ```
//!
//! Called by the CRI door with what the client sent, and by `registry` for what to ask of whom. It must not look at
//! which images there are. The grammar is the one of the distribution project (`reference/reference.go`), which containerd
//! and Docker read; it is written out here because the regular expression for it took 14 MiB of the daemon's memory.

use super::digest::{Digest, NotADigest};
use super::error::ImageError;
use reqwest::Url;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A longer name is an attack, not an image: the longest repository has 255 characters, a tag 128, a digest 71.
const LONGEST: usize = 1024;

/// Most characters of a repository.
const LONGEST_REPOSITORY: usize = 255;

/// Most characters of a tag.
const LONGEST_TAG: usize = 128;

/// The registry of names that tell none.
pub const DOCKER_HUB: &str = "docker.io";

/// How it was called once, and still is in credentials.
pub const DOCKER_HUB_ONCE: &str = "index.docker.io";

/// The host that serves it.
pub const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Where it keeps what has no owner.
const DOCKER_HUB_OFFICIAL: &str = "library";

/// A full, normalised image name: registry and repository, and the tag or digest that picks one image there.
///
/// A registry has one name, however it is spelled: `Quay.IO:443` is `quay.io` ([`one_spelling`]), so that its
/// section of the configuration and its share of the node are the same.
///
/// Short names are Docker Hub's (`busybox` is `docker.io/library/busybox:latest`), as everywhere in Kubernetes. Where a
/// name has both tag and digest, the digest alone counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

/// What picks one image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// A name that the registry may move to another image.
    Tag(String),
    /// The digest of a manifest or an index.
    Digest(Digest),
}

impl Reference {
    /// Reads and normalises a name.
    ///
    /// # Errors
    /// [`ImageError::BadReference`] says what is wrong with it and how a good one looks.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        Self::read(text).map_err(|reason| ImageError::BadReference {
            reference: text.chars().take(LONGEST).collect(),
            reason,
        })
    }

    /// The error is what is wrong with the name.
    fn read(text: &str) -> Result<Self, String> {
        check_text(text)?;
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        let (name, tag) = split_tag(name);
        let (registry, repository) = split_registry(name);
        check_registry(registry)?;
        let no_host = || "its registry is not a host, or a host with a port".to_owned();
        let registry = one_spelling(registry).ok_or_else(no_host)?;
        let registry = if registry == DOCKER_HUB_ONCE { DOCKER_HUB.to_owned() } else { registry };
        let repository = match registry == DOCKER_HUB && !repository.contains('/') {
            true => format!("{DOCKER_HUB_OFFICIAL}/{repository}"),
            false => repository.to_owned(),
        };
        check_repository(&repository)?;
        tag.map_or(Ok(()), check_tag)?;
        let version = match digest {
            Some(digest) => Version::Digest(digest.parse().map_err(|error: NotADigest| error.to_string())?),
            None => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { registry, repository, version })
    }

    /// Host and port of the registry; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in that registry, such as `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// This repository with the digest `digest`, as CRI's `repo_digests` have it.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { version: Version::Digest(digest), ..self.clone() }
    }
}

/// A colon before the last slash is one of a port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

/// What stands before the first slash is a registry where it could not be a part of a repository, and `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, repository)) if host.contains(['.', ':']) || host == "localhost" => (host, repository),
        _ => (DOCKER_HUB, name),
    }
}

/// The one spelling of a registry: small letters, addresses of IP in their plainest form, and no port where
/// it is the usual one. That of TLS is the usual one, but on this machine, where registries have none. `None`
/// where it is no host.
pub fn one_spelling(registry: &str) -> Option<String> {
    let with_scheme = |scheme: &str| Url::parse(&format!("{scheme}://{registry}")).ok();
    let url = with_scheme("https")?;
    let url = if is_loopback(url.host_str()?) { with_scheme("http")? } else { url };
    let plain =
        url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let host = url.host_str().filter(|_| plain)?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Whether a host is this machine.
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host of a registry, an IPv6 address with its brackets, and what follows: a colon and a port, or nothing.
pub fn split_port(registry: &str) -> (&str, &str) {
    let end = match registry.starts_with('[') {
        true => registry.find(']').map(|bracket| bracket + 1),
        false => registry.find(':'),
    };
    registry.split_at(end.unwrap_or(registry.len()))
}

fn check_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > LONGEST {
        return Err(format!("is longer than {LONGEST} characters"));
    }
    if text.contains(char::is_whitespace) {
        return Err("has a space in it".to_owned());
    }
    Ok(())
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = split_port(registry);
    let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    let is_port = |port: &str| port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    if !host || !port {
        return Err("its registry is not a host, or a host with a port".to_owned());
    }
    Ok(())
}

/// A label of a host's name.
fn is_label(label: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    label.starts_with(alphanumeric)
        && label.ends_with(alphanumeric)
        && label.chars().all(|c| alphanumeric(c) || c == '-')
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.contains(|c: char| c.is_ascii_uppercase()) {
        return Err("a repository has no capital letters".to_owned());
    }
    if repository.len() > LONGEST_REPOSITORY {
        return Err(format!("a repository has at most {LONGEST_REPOSITORY} characters"));
    }
    if !repository.split('/').all(is_part) {
        let parts = "a repository has lower-case letters and digits, with one of . _ __ - between them, in parts between /";
        return Err(parts.to_owned());
    }
    Ok(())
}

/// What a repository has between two slashes: letters and digits, and between those a dot, one or two underscores, or dashes.
fn is_part(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separates = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|c| c == b'-');
    part.starts_with(alphanumeric) && part.ends_with(alphanumeric) && part.split(alphanumeric).all(separates)
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = tag.len() <= LONGEST_TAG
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'));
    if !good {
        return Err(format!(
            "a tag has up to {LONGEST_TAG} letters, digits and _ . -, and begins with none of the last two"
        ));
    }
    Ok(())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// What a client may name an image by where it need not be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// A full image id.
    Id(Digest),
    /// A name; where no image has it and it is hexadecimal, it may also be the beginning of an id.
    Name(Reference, Option<String>),
}

impl Query {
    /// Reads an image id (with or without `sha256:`) or a name.
    ///
    /// # Errors
    /// [`ImageError::BadReference`] where it can be neither.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        if let Some(id) = text.parse().ok().or_else(|| Digest::from_hex(text)) {
            return Ok(Self::Id(id));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let beginning = (hex.len() >= 4 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')))
            .then(|| hex.to_owned());
        Ok(Self::Name(Reference::parse(text)?, beginning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn normal(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn short_names_are_docker_hubs_and_latest() {
        assert_eq!(normal("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("user/app:1"), "docker.io/user/app:1");
        assert_eq!(normal("index.docker.io/busybox"), "docker.io/library/busybox:latest");
    }

    #[test]
    fn registries_with_ports_keep_their_names() {
        assert_eq!(normal("localhost:5000/a"), "localhost:5000/a:latest");
        assert_eq!(
            normal("registry.k8s.io/e2e-test-images/busybox:1.29-2"),
            "registry.k8s.io/e2e-test-images/busybox:1.29-2"
        );
    }

    #[test]
    fn registry_has_one_name_however_it_is_spelled() {
        for spelled in ["Quay.IO/x/y", "quay.io:443/x/y", "QUAY.io:0443/x/y"] {
            assert_eq!(normal(spelled), "quay.io/x/y:latest", "{spelled}");
        }
        for (spelled, name) in [
            ("Index.Docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io:443/busybox", "docker.io/library/busybox:latest"),
            ("quay.io:05000/x", "quay.io:5000/x:latest"),
            ("quay.io:80/x", "quay.io:80/x:latest"),
            ("0x7f.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("127.0.0.1:443/x", "127.0.0.1:443/x:latest"),
            ("localhost:80/x", "localhost/x:latest"),
            ("[2001:DB8:0:0::1]:443/x", "[2001:db8::1]/x:latest"),
        ] {
            assert_eq!(normal(spelled), name, "{spelled}");
        }
        assert!(Reference::parse("1.2.3.256/x").is_err());
    }

    #[test]
    fn colon_is_a_ports_before_a_slash_and_a_tags_behind_it() {
        assert_eq!(normal("test.example:5000"), "docker.io/library/test.example:5000");
        assert_eq!(normal("test:5000/a"), "test:5000/a:latest");
        assert_eq!(normal("[2001:db8::1]:5000/a:1"), "[2001:db8::1]:5000/a:1");
    }

    #[test]
    fn separators_stand_alone_between_letters_and_digits() {
        for good in ["a.b", "a_b", "a__b", "a-b", "a---b", "a.b_c-d", "x.example/a/b.c"] {
            assert!(Reference::parse(good).is_ok(), "{good}");
        }
        for bad in ["a..b", "a___b", "a._b", "a.-b", "-a", "a-", "a/.b", "a//b", "é", "a:é"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn registry_is_a_host_with_a_port() {
        for bad in [
            "-a.b/c",
            "a..b/c",
            "a.b:/c",
            "a.b:70000/c",
            "a.b:x/c",
            "a.b:+1/c",
            "[::1/c",
            "[1.2]:5/c",
            "a_b.c/d",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn digest_wins_over_tag() {
        assert_eq!(normal(&format!("quay.io/a/b:1@{DIGEST}")), format!("quay.io/a/b@{DIGEST}"));
    }

    #[test]
    fn malformed_names_are_refused_with_the_name() {
        for text in
            ["", "UPPER/case", "a:b:c", "http://x/y", "a b", "a@sha256:12", ":tag", "/a", "a/", "x@md5:00"]
        {
            let error = Reference::parse(text).unwrap_err();
            assert!(
                matches!(&error, ImageError::BadReference { reference, .. } if reference == text),
                "{text}: {error}"
            );
        }
        for long in ["a".repeat(256), "a".repeat(5000), format!("a:{}", "b".repeat(129))] {
            assert!(Reference::parse(&long).is_err(), "{long}");
        }
    }

    #[test]
    fn longest_name_is_still_one_when_it_is_normal() {
        let official = 255 - "library/".len();
        for long in
            ["a".repeat(official), format!("x.test/{}", "a".repeat(255)), format!("a:{}", "b".repeat(128))]
        {
            let once = Reference::parse(&long).unwrap();
            assert_eq!(Reference::parse(&once.to_string()).unwrap(), once);
        }
        assert!(Reference::parse(&"a".repeat(official + 1)).is_err());
    }

    #[test]
    fn reason_of_a_plain_mistake_is_told() {
        let told =
            [("", "empty"), ("quay.io/a b", "space"), ("quay.io/A/b:1", "capital"), ("Busybox", "capital")];
        for (text, word) in told {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn ids_with_and_without_algorithm_are_ids() {
        let id = Digest::of(b"");
        assert_eq!(Query::parse(DIGEST).unwrap(), Query::Id(id));
        assert_eq!(Query::parse(&id.hex()).unwrap(), Query::Id(id));
        assert!(
            matches!(Query::parse("e3b0c442").unwrap(), Query::Name(_, Some(begin)) if begin == "e3b0c442")
        );
        assert!(
            matches!(Query::parse("sha256:e3b0c442").unwrap(), Query::Name(_, Some(begin)) if begin == "e3b0c442")
        );
        assert!(matches!(Query::parse("nginx").unwrap(), Query::Name(_, None)));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,300}") {
            let _ = Query::parse(&text);
        }

        #[test]
        fn normalising_twice_changes_nothing(
            host in "([a-z][a-z0-9]{0,8}\\.[a-z]{2,4}(:[1-9][0-9]{0,3})?/)?",
            path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let once = Reference::parse(&format!("{host}{path}{tag}")).unwrap();
            prop_assert_eq!(&Reference::parse(&once.to_string()).unwrap(), &once);
            prop_assert!(tag.is_empty() || once.to_string().ends_with(&tag));
        }
    }
}
