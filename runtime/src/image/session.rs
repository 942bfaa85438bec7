//! One pull's conversation with registries (OCI distribution specification 1.1): which place is asked, what is tried again,
//! and how often.
//!
//! ```text
//!             429, 5xx, no answer: pause, a few times
//! request ------------------------------------------> next place ... --> addresses in the manifest, for blobs
//!    | 200, 206         404, 401, other 4xx: at once ------^
//!    v
//! answer
//! ```
//!
//! Made by `registry`; used by `describe` for manifests and by `download` for blobs. Everything a registry sends is bounded.

use super::answer::{Kind, Refusal, Refusals, accept_foreign, is_own, read_bounded, send};
use super::descriptor::Descriptor;
use super::digest::Digest;
use super::endpoint::Endpoint;
use super::error::ImageError;
use super::hosts::Hosts;
use super::manifest::{ACCEPTED, LARGEST_MANIFEST};
use super::reference::{Reference, Version};
use super::registry::Patience;
use bytes::Bytes;
use reqwest::header::{ACCEPT, RANGE};
use reqwest::{Client, Response, Url};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longest pause, even where a registry asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where a blob may be.
pub enum Place {
    /// A registry or mirror, by its index.
    Registry(usize),
    /// An address in the manifest.
    Foreign {
        /// The address.
        url: Url,
        /// How it is reached.
        client: Client,
    },
}

/// One pull's conversation.
pub struct Session {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    hosts: Arc<Hosts>,
    /// Whether layers may come from addresses in the manifest.
    foreign: bool,
    /// Index of the place that had the manifest: blobs are asked for there first.
    first: AtomicUsize,
}

impl Session {
    /// A conversation about `reference` with `endpoints`, of which there is at least one.
    pub(super) fn new(
        reference: Reference,
        endpoints: Vec<Endpoint>,
        hosts: Arc<Hosts>,
        foreign: bool,
    ) -> Self {
        Self { reference, endpoints, hosts, foreign, first: AtomicUsize::new(0) }
    }

    /// The image it is about.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The places from the one that had the manifest on, then those before it.
    fn places_in_turn(&self) -> Vec<usize> {
        let first = self.first.load(Ordering::Relaxed);
        (first..self.endpoints.len()).chain(0..first).collect()
    }

    /// Gets the manifest or index of `version`, and checks its digest where `version` is one.
    ///
    /// # Errors
    /// What the places said, once all have refused.
    pub async fn manifest(&self, version: &Version) -> Result<(Bytes, Digest), ImageError> {
        let mut refusals = Refusals::default();
        for index in self.places_in_turn() {
            match self.manifest_from(&self.endpoints[index], version).await {
                Ok(found) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(refusal) => refusals.add(self.endpoints[index].name(), refusal),
            }
        }
        Err(refusals.into_error(format!("image {}", self.reference)))
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        version: &Version,
    ) -> Result<(Bytes, Digest), Refusal> {
        let path = match version {
            Version::Tag(tag) => format!("manifests/{tag}"),
            Version::Digest(digest) => format!("manifests/{digest}"),
        };
        let mut attempt = 0;
        loop {
            let patience = self.hosts.patience();
            let answer = match endpoint.get(&path, ACCEPTED, 0, patience.stall).await {
                Ok(response) => {
                    read_bounded(response, LARGEST_MANIFEST, patience.grace(), Some(endpoint.base())).await
                }
                Err(refusal) => Err(refusal),
            };
            match answer {
                Ok(bytes) => {
                    let (bytes, digest) = digested(bytes).await?;
                    return match version {
                        Version::Digest(wanted) if *wanted != digest => {
                            tracing::debug!(%wanted, got = %digest, "another manifest");
                            Err(Refusal::bad_answer(format!("sent another manifest than {wanted}")))
                        }
                        _ => Ok((bytes.into(), digest)),
                    };
                }
                Err(refusal) => self.pause_or_give_up(refusal, &mut attempt).await?,
            }
        }
    }

    /// The places that a blob is asked for at: those of the image, then the addresses that the manifest names, where they
    /// are allowed. What is not asked, and why, is noted in `refusals`.
    pub(super) fn places_of(&self, blob: &Descriptor, refusals: &mut Refusals) -> Vec<Place> {
        let mut places: Vec<_> = self.places_in_turn().into_iter().map(Place::Registry).collect();
        if !self.foreign {
            return places;
        }
        let Some(registry) = self.endpoints.last().map(Endpoint::base) else { return places };
        for address in &blob.urls {
            let url = Url::parse(address).map_err(|error| format!("is no address: {error}"));
            let reached = url.and_then(|url| Ok((self.hosts.client_for_foreign(&url, registry)?, url)));
            match reached {
                Ok((client, url)) => places.push(Place::Foreign { url, client }),
                Err(reason) => refusals.add(shown(address), Refusal::bad_answer(reason)),
            }
        }
        places
    }

    /// Why addresses in manifests are not asked; absent where they are.
    pub(super) fn not_asked(&self) -> Option<String> {
        let why = match self.hosts.foreign_layers() {
            true => {
                format!("registry.{:?}.mirrors_only keeps this node from them", self.reference.registry())
            }
            false => "set image.foreign_layers = true in the configuration to fetch from there".to_owned(),
        };
        Some(why).filter(|_| !self.foreign)
    }

    /// Asks a place for a blob from byte `from` on.
    pub(super) async fn blob(&self, place: &Place, digest: Digest, from: u64) -> Result<Response, Refusal> {
        let stall = self.hosts.patience().stall;
        match place {
            Place::Registry(index) => {
                self.endpoints[*index].get(&format!("blobs/{digest}"), "*/*", from, stall).await
            }
            Place::Foreign { url, client } => {
                let mut request = client.get(url.clone()).header(ACCEPT, "*/*");
                if from > 0 {
                    request = request.header(RANGE, format!("bytes={from}-"));
                }
                accept_foreign(send(request, stall, None).await?)
            }
        }
    }

    /// Whether errors may quote what `place` has answered from `url`: only where no answer has led elsewhere.
    pub(super) fn may_quote(&self, place: &Place, url: &Url) -> bool {
        match place {
            Place::Registry(index) => is_own(url, Some(self.endpoints[*index].base())),
            Place::Foreign { .. } => false,
        }
    }

    /// The name of a place in errors.
    pub(super) fn name_of(&self, place: &Place) -> String {
        match place {
            Place::Registry(index) => self.endpoints[*index].name(),
            Place::Foreign { url, .. } => shown(url.as_str()),
        }
    }

    /// How slow and failing places are borne.
    pub(super) fn patience(&self) -> Patience {
        self.hosts.patience()
    }

    /// Waits before the next attempt at the same place.
    ///
    /// # Errors
    /// The refusal, where another attempt makes no sense or all have been made.
    pub(super) async fn pause_or_give_up(&self, refusal: Refusal, attempt: &mut u32) -> Result<(), Refusal> {
        *attempt += 1;
        let patience = self.hosts.patience();
        if refusal.kind != Kind::Unavailable || *attempt >= patience.attempts {
            return Err(refusal);
        }
        let doubled = patience.first_pause * 2u32.saturating_pow(*attempt - 1);
        let pause = refusal.retry_after.unwrap_or(doubled).min(LONGEST_PAUSE);
        tracing::debug!(image = %self.reference, reason = refusal.reason, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> Vec<String> {
        self.endpoints.iter().map(|e| e.url("").as_str().trim_end_matches('/').to_owned()).collect()
    }
}

/// A document with its digest, which takes milliseconds where it is large.
async fn digested(bytes: Vec<u8>) -> Result<(Vec<u8>, Digest), Refusal> {
    let hashed = tokio::task::spawn_blocking(move || {
        let digest = Digest::of(&bytes);
        (bytes, digest)
    });
    hashed.await.map_err(|_| Refusal::unavailable("was read, and the daemon is going down"))
}

/// An address of a manifest as it is told: without its query, which may hold a signature.
fn shown(address: &str) -> String {
    let plain = address.split(['?', '#']).next().unwrap_or_default();
    plain.chars().filter(|c| !c.is_control()).take(200).collect()
}
