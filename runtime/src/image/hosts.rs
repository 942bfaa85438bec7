//! How each host is reached and trusted: `[registry."HOST"]` of the configuration decides; the section `"*"` counts for hosts
//! without their own.
//!
//! Used by `registry` for the places of an image, and by `session` for addresses in manifests. It must not send requests.

use super::answer::note_redirect;
use super::destinations::{Destinations, Resolver};
use super::endpoint::Clients;
use super::error::ImageError;
use super::lookups::Lookups;
use super::reference::{is_loopback, one_spelling};
use super::registry::Patience;
use crate::config::RegistryConfig;
use crate::lock::lock;
use reqwest::{Certificate, Client, Url, redirect};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Most redirects of one request: registries send blobs from elsewhere with one or two.
const MOST_REDIRECTS: usize = 5;

/// Most connections to one host and port that are kept for later requests: as many as one pull has downloads.
const MOST_IDLE: usize = 8;

/// Time for which a connection is kept for later requests: registries may redirect to ever new ports, and
/// each takes a descriptor.
const KEPT_IDLE: Duration = Duration::from_secs(5);

/// All hosts, and the HTTP clients for them.
pub struct Hosts {
    sections: BTreeMap<String, RegistryConfig>,
    destinations: Arc<Destinations>,
    /// Of all clients together.
    lookups: Lookups,
    patience: Patience,
    clients: Mutex<HashMap<Trust, Clients>>,
    /// `image.foreign_layers`
    foreign_layers: bool,
}

/// What distinguishes HTTP clients; connections are shared below each.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Trust {
    ca_file: Option<PathBuf>,
    skip_verify: bool,
    /// Past the proxy of the environment: to this machine itself.
    direct: bool,
}

impl Hosts {
    /// Takes the configuration.
    pub fn new(sections: BTreeMap<String, RegistryConfig>, foreign_layers: bool, patience: Patience) -> Self {
        // The cryptography of all TLS of this process; a second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let destinations = Arc::new(Destinations::new(&sections));
        let sections =
            sections.into_iter().map(|(host, section)| (one_spelling(&host).unwrap_or(host), section));
        let sections = sections.collect();
        let (lookups, clients) = (Lookups::default(), Mutex::default());
        Self { sections, destinations, lookups, patience, clients, foreign_layers }
    }

    /// How slow and failing hosts are borne.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Whether layers are fetched from addresses in manifests.
    pub fn foreign_layers(&self) -> bool {
        self.foreign_layers
    }

    /// The configuration of a host, with its port where it has one, in whatever spelling.
    pub fn section(&self, host: &str) -> RegistryConfig {
        let own = one_spelling(host).and_then(|host| self.sections.get(&host));
        own.or_else(|| self.sections.get("*")).cloned().unwrap_or_default()
    }

    /// The clients for `url`, as `section` says; `host` names it in errors.
    ///
    /// # Errors
    /// [`ImageError::BadConfiguration`] for certificates that cannot be used.
    pub fn clients(&self, host: &str, url: &Url, section: &RegistryConfig) -> Result<Clients, ImageError> {
        let trust = Trust {
            ca_file: section.ca_file.clone(),
            skip_verify: section.skip_verify,
            direct: is_loopback(url.host_str().unwrap_or_default()),
        };
        let mut clients = lock(&self.clients);
        if let Some(clients) = clients.get(&trust) {
            return Ok(clients.clone());
        }
        let bad = |reason| ImageError::BadConfiguration { registry: host.to_owned(), reason };
        let destinations = Arc::clone(&self.destinations);
        let anywhere = redirect::Policy::custom(move |attempt| follow(attempt, &destinations));
        let destinations = Arc::clone(&self.destinations);
        let at_home = redirect::Policy::custom(move |attempt| follow_at_home(attempt, &destinations));
        let any = self.build(&trust, anywhere).map_err(bad)?;
        let same_host = self.build(&trust, at_home).map_err(bad)?;
        let built = Clients { any, same_host, destinations: Arc::clone(&self.destinations) };
        clients.insert(trust, built.clone());
        Ok(built)
    }

    /// The client for an address in a manifest, which whoever made the image chose. The image's own `registry` could redirect
    /// there too; so the same holds as for its redirects: nowhere on this node or its link, and no plain text on behalf of a
    /// registry with TLS, unless the host is configured as `plain_http`.
    ///
    /// # Errors
    /// Why it is not asked.
    pub fn client_for_foreign(&self, url: &Url, registry: &Url) -> Result<Client, String> {
        let host = host_and_port(url);
        let section = self.section(&host);
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("is no address of HTTP".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has credentials in it".to_owned());
        }
        if url.scheme() == "http" && registry.scheme() == "https" && !section.plain_http {
            return Err(format!("is without TLS: set registry.{host:?}.plain_http = true to allow that"));
        }
        self.destinations.check(url, registry).map_err(|reason| format!("is at {reason}"))?;
        self.clients(&host, url, &section).map(|clients| clients.any).map_err(|error| error.to_string())
    }

    fn build(&self, trust: &Trust, redirects: redirect::Policy) -> Result<Client, String> {
        let (destinations, lookups) = (Arc::clone(&self.destinations), self.lookups.clone());
        let mut builder = Client::builder()
            .user_agent(concat!("isopod/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.patience.stall)
            .read_timeout(self.patience.stall)
            .pool_max_idle_per_host(MOST_IDLE)
            .pool_idle_timeout(KEPT_IDLE)
            .dns_resolver(Resolver { destinations, lookups })
            .redirect(redirects)
            .referer(false);
        if trust.direct {
            builder = builder.no_proxy();
        }
        if trust.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        if let Some(path) = &trust.ca_file {
            builder = builder.tls_certs_merge(certificates(path)?);
        }
        builder.build().map_err(|error| format!("no HTTP client: {error}"))
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("ca_file {}: {error}", path.display()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("ca_file {} holds no certificate in PEM form", path.display())),
    }
}

/// Follows redirects, never from TLS to plain text, and to this node or its link only as [`Destinations`] has it.
fn follow(attempt: redirect::Attempt<'_>, destinations: &Destinations) -> redirect::Action {
    let was_encrypted = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MOST_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if was_encrypted && attempt.url().scheme() != "https" {
        return attempt.error("redirected from https to http");
    }
    match attempt.previous().first().map(|asked| destinations.check(attempt.url(), asked)) {
        Some(Err(reason)) => attempt.error(format!("redirected to {reason}")),
        Some(Ok(())) | None => {
            note_redirect(attempt.url());
            attempt.follow()
        }
    }
}

/// As [`follow`], and never to another host: a body is sent again where a redirect leads, with the secrets in it.
fn follow_at_home(attempt: redirect::Attempt<'_>, destinations: &Destinations) -> redirect::Action {
    if attempt.previous().iter().any(|url| url.origin() != attempt.url().origin()) {
        return attempt.error("redirected to another host, which gets no credentials");
    }
    follow(attempt, destinations)
}

/// The host of an address as sections name it.
pub fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        stall: Duration::from_secs(1),
        least_rate: 0,
        first_pause: Duration::from_millis(1),
        attempts: 2,
    };

    #[test]
    fn foreign_addresses_are_asked_as_safely_as_the_registry() {
        let plain = RegistryConfig { plain_http: true, ..Default::default() };
        let hosts = Hosts::new([("inner.test:8080".to_owned(), plain)].into(), true, PATIENCE);
        let asked = |url: &str, registry: &str| {
            hosts.client_for_foreign(&Url::parse(url).unwrap(), &Url::parse(registry).unwrap()).map(drop)
        };
        let registry = "https://r.test";
        assert_eq!(asked("https://a.test/x?y=z", registry), Ok(()));
        assert_eq!(asked("http://a.test/x", "http://r.test"), Ok(()));
        assert_eq!(asked("http://inner.test:8080/x", registry), Ok(()));
        assert_eq!(asked("http://127.0.0.1:5000/x", "http://127.0.0.1:5000"), Ok(()));
        for (url, reason) in [
            ("http://127.0.0.1/x", "set registry.\"127.0.0.1\".plain_http = true"),
            ("http://inner.test/x", "without TLS"),
            ("https://127.0.0.1:10250/x", "is at 127.0.0.1:10250, which is this node or on its link"),
            ("https://169.254.169.254/x", "this node or on its link"),
            ("https://[fd00:ec2::254]/x", "this node or on its link"),
            ("ftp://a.test/x", "no address of HTTP"),
            ("file:///etc/passwd", "no address of HTTP"),
            ("data:text/plain,x", "no address of HTTP"),
            ("https://me:secret@a.test/x", "has credentials"),
            ("https://me@a.test/x", "has credentials"),
        ] {
            let refused = asked(url, registry).unwrap_err();
            assert!(refused.contains(reason) && !refused.contains("secret"), "{url}: {refused}");
        }
    }
}
