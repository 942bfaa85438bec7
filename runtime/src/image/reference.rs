//! Names of images as users and kubelet write them: `busybox`, `quay.io/a/b:tag`, `repo@sha256:...`, an image id.
//!
//! Called by the CRI door with what the client sent, and by `registry` for what to ask of whom. It must not look at
//! which images there are.

use super::digest::Digest;
use super::error::ImageError;
use oci_spec::distribution::Reference as Parsed;
use std::fmt;

/// A longer name is an attack, not an image: the longest repository has 255 characters, a tag 128, a digest 71.
const LONGEST: usize = 1024;

/// A full, normalised image name: registry and repository, and the tag or digest that picks one image there.
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
        let bad = |reason: String| ImageError::BadReference {
            reference: text.chars().take(LONGEST).collect(),
            reason,
        };
        if text.len() > LONGEST {
            return Err(bad(format!("is longer than {LONGEST} characters")));
        }
        let parsed = Parsed::try_from(text)
            .map_err(|error| bad(why(text).map_or_else(|| error.to_string(), str::to_owned)))?;
        if parsed.repository().bytes().any(|c| c.is_ascii_uppercase()) {
            return Err(bad(CAPITALS.to_owned()));
        }
        let version = match (parsed.digest(), parsed.tag()) {
            (Some(digest), _) => Version::Digest(
                digest.parse().map_err(|error: super::digest::NotADigest| bad(error.to_string()))?,
            ),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Ok(Self {
            registry: parsed.registry().to_owned(),
            repository: parsed.repository().to_owned(),
            version,
        })
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

const CAPITALS: &str = "a repository has no capital letters";

/// What is wrong with a name that cannot be parsed, in more words than the parser has; `None` where that is not plain.
fn why(text: &str) -> Option<&'static str> {
    let path = text.split('@').next().unwrap_or_default();
    let path = path.split_once('/').map_or(path, |(_, path)| path).split(':').next().unwrap_or_default();
    if text.is_empty() {
        Some("is empty")
    } else if text.contains(char::is_whitespace) {
        Some("has a space in it")
    } else {
        path.bytes().any(|c| c.is_ascii_uppercase()).then_some(CAPITALS)
    }
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
        assert!(Reference::parse(&"a".repeat(5000)).is_err());
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
