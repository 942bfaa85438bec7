//! Where an image comes from: the mirrors that the configuration names, then the registry of its name.
//!
//! Called by `pull`, which asks for a [`Session`]. It must not send requests itself.

use super::auth::{Credentials, SentCredentials};
use super::endpoint::Endpoint;
use super::error::ImageError;
use super::hosts::{Hosts, host_and_port};
use super::reference::{DOCKER_HUB, DOCKER_HUB_HOST, Reference, is_loopback, one_spelling, split_port};
use super::session::Session;
use crate::config::RegistryConfig;
use reqwest::Url;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long slow and failing registries are borne.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longest wait for a connection, an answer or the next bytes of one.
    pub stall: Duration,
    /// Fewest bytes of a blob a second, over [`Patience::grace`]; 0 accepts any.
    pub least_rate: u64,
    /// Pause before the second attempt; it doubles with each further one.
    pub first_pause: Duration,
    /// Attempts at one place without progress before the next place is asked.
    pub attempts: u32,
}

impl Patience {
    /// Longest wait for a whole small answer, and longest time in which a blob may come slower than it should.
    pub fn grace(&self) -> Duration {
        self.stall.saturating_mul(10)
    }
}

/// All registries.
pub struct Registry(Arc<Hosts>);

impl Registry {
    /// Takes the configuration.
    ///
    /// # Errors
    /// [`ImageError::BadConfiguration`] for a mirror that is no address, and for two sections of one host.
    pub fn open(
        sections: BTreeMap<String, RegistryConfig>,
        foreign_layers: bool,
        patience: Patience,
    ) -> Result<Self, ImageError> {
        let mut spelled = BTreeMap::new();
        for (host, section) in &sections {
            let name = one_spelling(host).unwrap_or_else(|| host.clone());
            if let Some(other) = spelled.insert(name, host) {
                let reason =
                    format!("[registry.{other:?}] is for the same host: make one section of the two");
                return Err(ImageError::BadConfiguration { registry: host.clone(), reason });
            }
            for mirror in &section.mirrors {
                mirror_url(host, mirror)?;
            }
        }
        Ok(Self(Arc::new(Hosts::new(sections, foreign_layers, patience))))
    }

    /// The places that may have an image, in order: mirrors, then its registry. Only the latter sees credentials.
    ///
    /// # Errors
    /// Credentials that cannot be read, and a configuration that cannot be used.
    pub fn session(&self, reference: &Reference, sent: &SentCredentials) -> Result<Session, ImageError> {
        let host = reference.registry();
        let credentials = sent.for_registry(host)?;
        let section = self.0.section(host);
        let mut endpoints = Vec::new();
        for mirror in &section.mirrors {
            let url = mirror_url(host, mirror)?;
            let own = self.0.section(&host_and_port(&url));
            let clients = self.0.clients(host, &url, &own)?;
            let prefix = url.path().trim_matches('/').to_owned();
            let repository = [prefix.as_str(), reference.repository()].join("/");
            let repository = repository.trim_start_matches('/').to_owned();
            endpoints.push(Endpoint::new(
                url,
                repository,
                Some(host.to_owned()),
                clients,
                Credentials::Anonymous,
            ));
        }
        if !section.mirrors_only || endpoints.is_empty() {
            let url = registry_url(host, &section)?;
            let clients = self.0.clients(host, &url, &section)?;
            endpoints.push(Endpoint::new(url, reference.repository().to_owned(), None, clients, credentials));
        }
        // Who asks the mirrors only does not ask whom a manifest names.
        let foreign = self.0.foreign_layers() && !section.mirrors_only;
        Ok(Session::new(reference.clone(), endpoints, Arc::clone(&self.0), foreign))
    }
}

fn mirror_url(host: &str, mirror: &str) -> Result<Url, ImageError> {
    let bad = || ImageError::BadConfiguration {
        registry: host.to_owned(),
        reason: format!("mirror {mirror:?} must look like http://host:port or https://host/path"),
    };
    let url = Url::parse(mirror).map_err(|_| bad())?;
    let plain = url.username().is_empty() && url.query().is_none() && url.fragment().is_none();
    if matches!(url.scheme(), "http" | "https") && url.has_host() && plain { Ok(url) } else { Err(bad()) }
}

/// Address of the registry itself. One on this machine is reached without TLS, as all container tools do.
fn registry_url(host: &str, section: &RegistryConfig) -> Result<Url, ImageError> {
    let real = if host == DOCKER_HUB { DOCKER_HUB_HOST } else { host };
    let (name, _) = split_port(host);
    let scheme = if section.plain_http || is_loopback(name) { "http" } else { "https" };
    let reference = || ImageError::BadReference {
        reference: host.to_owned(),
        reason: "its registry is no host name".to_owned(),
    };
    Url::parse(&format!("{scheme}://{real}")).map_err(|_| reference())
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

    fn places(sections: &[(&str, RegistryConfig)], reference: &str) -> Vec<String> {
        let sections = sections.iter().map(|(host, section)| ((*host).to_owned(), section.clone())).collect();
        let registry = Registry::open(sections, false, PATIENCE).unwrap();
        let session =
            registry.session(&Reference::parse(reference).unwrap(), &SentCredentials::default()).unwrap();
        session.places()
    }

    #[test]
    fn other_spelling_of_a_registry_has_the_same_section() {
        let only = RegistryConfig { mirrors_only: true, ..mirrors(&["https://mirror.test"]) };
        for key in ["quay.io", "Quay.io", "quay.io:443"] {
            for image in ["quay.io/a/b", "Quay.IO/a/b", "quay.io:443/a/b", "QUAY.io:0443/a/b"] {
                let asked = places(&[(key, only.clone())], image);
                assert_eq!(asked, ["https://mirror.test/v2/a/b"], "{image} by [registry.{key:?}]");
            }
        }
        let twice =
            [("quay.io", &only), ("QUAY.io", &only)].map(|(host, only)| (host.to_owned(), only.clone()));
        let refused = Registry::open(twice.into(), false, PATIENCE).err().unwrap().to_string();
        assert!(refused.contains("[registry.\"QUAY.io\"] is for the same host"), "{refused}");
    }

    fn mirrors(mirrors: &[&str]) -> RegistryConfig {
        RegistryConfig { mirrors: mirrors.iter().map(|&m| m.to_owned()).collect(), ..Default::default() }
    }

    #[test]
    fn docker_hub_is_asked_at_its_real_host_and_this_machine_without_tls() {
        assert_eq!(places(&[], "busybox"), ["https://registry-1.docker.io/v2/library/busybox"]);
        assert_eq!(places(&[], "localhost:5000/a/b"), ["http://localhost:5000/v2/a/b"]);
        assert_eq!(places(&[], "[::1]:5000/a"), ["http://[::1]:5000/v2/a"]);
        assert_eq!(places(&[], "[::1]/a"), ["http://[::1]/v2/a"]);
        assert_eq!(places(&[], "[2001:db8::1]/a"), ["https://[2001:db8::1]/v2/a"]);
        let plain = RegistryConfig { plain_http: true, ..Default::default() };
        assert_eq!(places(&[("r.test", plain)], "r.test/a"), ["http://r.test/v2/a"]);
    }

    #[test]
    fn mirrors_come_first_with_their_path_before_the_repository() {
        let section = mirrors(&["http://127.0.0.1:5000", "https://harbor.test/hub/"]);
        assert_eq!(
            places(&[("docker.io", section)], "busybox"),
            [
                "http://127.0.0.1:5000/v2/library/busybox",
                "https://harbor.test/v2/hub/library/busybox",
                "https://registry-1.docker.io/v2/library/busybox"
            ]
        );
    }

    #[test]
    fn section_for_all_hosts_counts_where_there_is_no_other() {
        let all = RegistryConfig { mirrors_only: true, ..mirrors(&["http://m.test"]) };
        let sections = [("*", all), ("quay.io", RegistryConfig::default())];
        assert_eq!(places(&sections, "gcr.io/a"), ["http://m.test/v2/a"]);
        assert_eq!(places(&sections, "quay.io/a"), ["https://quay.io/v2/a"]);
    }

    #[test]
    fn mirror_that_is_no_address_is_refused_with_its_section() {
        for mirror in ["127.0.0.1:5000", "ftp://x", "https://user@x"] {
            let sections = [("docker.io".to_owned(), mirrors(&[mirror]))].into();
            let error = Registry::open(sections, false, PATIENCE).err().unwrap().to_string();
            assert!(error.contains("docker.io") && error.contains(mirror), "{error}");
        }
    }
}
