//! One pull's conversation with registries (OCI distribution specification 1.1): requests, their authentication, and
//! what is tried again, where and how often.
//!
//! ```text
//!            401 + challenge, once           429, 5xx, no answer: pause, a few times
//! request ---------------------> token ---> request ---------------------------------> next place
//!    | 200, 206                               404, 401, other 4xx: at once -----------^
//!    v
//! answer
//! ```
//!
//! Made by `registry`; used by `pull` for manifests and by `download` for blobs. Everything a registry sends is bounded.

use super::auth::{Challenge, Credentials};
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{ACCEPTED, LARGEST_MANIFEST};
use super::reference::{Reference, Version};
use super::registry::Patience;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use std::error::Error as _;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Longest text of a registry that is passed on, in bytes.
const LONGEST_ANSWER: u64 = 4 << 10;
/// Largest answer of a token service, in bytes.
const LARGEST_TOKEN: u64 = 1 << 20;
/// Longest pause, even where a registry asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A place that may have the image.
pub struct Endpoint {
    base: Url,
    repository: String,
    namespace: Option<String>,
    client: Client,
    credentials: Credentials,
    /// What the last challenge led to; used until it is refused.
    authorization: Mutex<Option<HeaderValue>>,
}

/// Why a place did not give what was asked for.
#[derive(Debug)]
pub struct Refusal {
    kind: Kind,
    reason: String,
    /// How long the place asks to wait.
    retry_after: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    NotFound,
    BadAnswer,
    Unauthorized,
    Unavailable,
}

/// The refusals of all places, in order.
#[derive(Debug, Default)]
pub struct Refusals(Vec<(String, Refusal)>);

/// One pull's conversation.
pub struct Session {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    patience: Patience,
    /// Index of the place that had the manifest: blobs are asked for there first.
    first: AtomicUsize,
}

impl Session {
    /// A conversation about `reference` with `endpoints`, of which there is at least one.
    pub(super) fn new(reference: Reference, endpoints: Vec<Endpoint>, patience: Patience) -> Self {
        Self { reference, endpoints, patience, first: AtomicUsize::new(0) }
    }

    /// The image it is about.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The places from the one that had the manifest on, then those before it.
    pub(super) fn places_in_turn(&self) -> Vec<usize> {
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
                Err(refusal) => refusals.add(&self.endpoints[index], refusal),
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
            let answer = match endpoint.get(&path, ACCEPTED, 0, self.patience.stall).await {
                Ok(response) => read_bounded(response, LARGEST_MANIFEST).await,
                Err(refusal) => Err(refusal),
            };
            match answer {
                Ok(bytes) => {
                    let digest = Digest::of(&bytes);
                    return match version {
                        Version::Digest(wanted) if *wanted != digest => Err(Refusal::bad_answer(format!(
                            "sent a manifest with digest {digest} in place of {wanted}"
                        ))),
                        _ => Ok((bytes.into(), digest)),
                    };
                }
                Err(refusal) => self.pause_or_give_up(refusal, &mut attempt).await?,
            }
        }
    }

    /// Asks place `index` for a blob from byte `from` on.
    pub(super) async fn blob(&self, index: usize, digest: Digest, from: u64) -> Result<Response, Refusal> {
        self.endpoints[index].get(&format!("blobs/{digest}"), "*/*", from, self.patience.stall).await
    }

    /// Notes that place `index` refused.
    pub(super) fn note(&self, refusals: &mut Refusals, index: usize, refusal: Refusal) {
        refusals.add(&self.endpoints[index], refusal);
    }

    /// Waits before the next attempt at the same place.
    ///
    /// # Errors
    /// The refusal, where another attempt makes no sense or all have been made.
    pub(super) async fn pause_or_give_up(&self, refusal: Refusal, attempt: &mut u32) -> Result<(), Refusal> {
        *attempt += 1;
        if refusal.kind != Kind::Unavailable || *attempt >= self.patience.attempts {
            return Err(refusal);
        }
        let doubled = self.patience.first_pause * 2u32.saturating_pow(*attempt - 1);
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

impl Endpoint {
    /// A place; `namespace` is the registry that a mirror stands for.
    pub(super) fn new(
        base: Url,
        repository: String,
        namespace: Option<String>,
        client: Client,
        credentials: Credentials,
    ) -> Self {
        Self { base, repository, namespace, client, credentials, authorization: Mutex::default() }
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{path}", self.repository));
        url
    }

    /// One request, with one round of authentication where the place asks for it. A body follows in the answer.
    async fn get(&self, path: &str, accept: &str, from: u64, stall: Duration) -> Result<Response, Refusal> {
        let mut url = self.url(path);
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let mut challenged = false;
        loop {
            let mut request = self.client.get(url.clone()).header(ACCEPT, accept);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let known = self.authorization();
            if let Some(authorization) = &known {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = send(request, stall).await?;
            if response.status() != StatusCode::UNAUTHORIZED || challenged {
                return accept_status(response).await;
            }
            challenged = true;
            let authorization = self.answer(&response, stall).await?;
            *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = authorization;
        }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let stored = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match &self.credentials {
            Credentials::Bearer(token) => stored.or_else(|| secret(&format!("Bearer {token}"))),
            _ => stored,
        }
    }

    /// Answers the challenge of a 401.
    async fn answer(&self, response: &Response, stall: Duration) -> Result<Option<HeaderValue>, Refusal> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let texts: Vec<_> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        match (Challenge::parse(&texts.join(", ")), &self.credentials) {
            (_, Credentials::Bearer(_)) => Err(Refusal::unauthorized("refuses the registry token")),
            (Some(Challenge::Bearer { realm, service }), _) => {
                self.token(&realm, service.as_deref(), stall).await.map(Some)
            }
            (Some(Challenge::Basic), Credentials::Basic { username, password }) => {
                let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
                Ok(secret(&format!("Basic {encoded}")))
            }
            (Some(Challenge::Basic), Credentials::Refresh(_)) => {
                Err(Refusal::unauthorized("takes name and password only, and an identity token was given"))
            }
            (Some(Challenge::Basic), Credentials::Anonymous) => {
                Err(Refusal::unauthorized("wants a name and a password"))
            }
            (None, _) => Err(Refusal::unauthorized("refuses without saying how to authenticate")),
        }
    }

    /// Gets a bearer token from the token service that a challenge names (distribution token specification; OAuth2 for
    /// refresh tokens). A service without TLS gets no credentials on behalf of a registry with it.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        stall: Duration,
    ) -> Result<HeaderValue, Refusal> {
        let url = Url::parse(realm).map_err(|_| Refusal::bad_answer("names no usable token service"))?;
        let exposed = self.base.scheme() == "https" && url.scheme() != "https";
        if exposed && self.credentials != Credentials::Anonymous {
            return Err(Refusal::bad_answer("would have credentials sent without TLS"));
        }
        let response = send(self.token_request(url, service), stall).await?;
        let response = match response.status() {
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(Refusal::unauthorized(format!(
                    "token service refuses: {}",
                    said(response).await
                )));
            }
            _ => accept_status(response).await?,
        };
        let bytes = read_bounded(response, LARGEST_TOKEN).await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| Refusal::bad_answer("token service sent no token"))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| Refusal::bad_answer("token service sent no token"))?;
        secret(&format!("Bearer {token}"))
            .ok_or_else(|| Refusal::bad_answer("token service sent a broken token"))
    }

    fn token_request(&self, mut url: Url, service: Option<&str>) -> RequestBuilder {
        let scope = format!("repository:{}:pull", self.repository);
        let wanted =
            [("scope", scope.as_str())].into_iter().chain(service.map(|service| ("service", service)));
        if let Credentials::Refresh(token) = &self.credentials {
            // a form has the syntax of a query
            let mut form = url.clone();
            form.set_query(None);
            let fixed = [("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "isopod")];
            form.query_pairs_mut().extend_pairs(wanted).extend_pairs(fixed);
            let form = form.query().unwrap_or_default().to_owned();
            return self
                .client
                .post(url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form);
        }
        url.query_pairs_mut().extend_pairs(wanted);
        match &self.credentials {
            Credentials::Basic { username, password } => {
                self.client.get(url).basic_auth(username, Some(password))
            }
            _ => self.client.get(url),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// A header value that logs leave out.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn send(request: RequestBuilder, stall: Duration) -> Result<Response, Refusal> {
    match tokio::time::timeout(stall, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if error.is_builder() => Err(Refusal::bad_answer(reason(&error))),
        // The client has the same limit for each of its waits.
        Ok(Err(error)) if !error.is_timeout() => Err(Refusal::unavailable(reason(&error))),
        _ => Err(Refusal::unavailable(format!("no answer within {} s", stall.as_secs_f32()))),
    }
}

async fn accept_status(response: Response) -> Result<Response, Refusal> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Unauthorized,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Kind::Unavailable,
        status if status.is_server_error() => Kind::Unavailable,
        _ => Kind::BadAnswer,
    };
    let reason = format!("status {} {}", status.as_u16(), said(response).await);
    Err(Refusal {
        kind,
        reason: reason.trim_end().to_owned(),
        retry_after: retry_after.map(Duration::from_secs),
    })
}

/// The words of an error answer: those of the distribution specification, else its beginning.
async fn said(response: Response) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<OneError>,
    }
    #[derive(Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let bytes = read_bounded(response, LONGEST_ANSWER).await.unwrap_or_default();
    let text = match serde_json::from_slice::<Errors>(&bytes) {
        Ok(Errors { errors }) if !errors.is_empty() => format!("{} {}", errors[0].code, errors[0].message),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    };
    text.chars().take(200).filter(|c| !c.is_control()).collect()
}

async fn read_bounded(mut response: Response, limit: u64) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Refusal::unavailable(reason(&error)))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(Refusal::bad_answer(format!("sent more than {limit} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The innermost cause, which says most: "connection refused" and not "error sending request".
pub(super) fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if error.is_timeout() && error.source().is_some() {
        return "timed out".to_owned();
    }
    cause.to_string()
}

impl Refusal {
    /// The place cannot be reached, or broke off: worth another attempt.
    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Unavailable, reason: reason.into(), retry_after: None }
    }

    /// The place answered with nonsense.
    pub(super) fn bad_answer(reason: impl Into<String>) -> Self {
        Self { kind: Kind::BadAnswer, reason: reason.into(), retry_after: None }
    }

    fn unauthorized(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Unauthorized, reason: reason.into(), retry_after: None }
    }
}

impl Refusals {
    fn add(&mut self, endpoint: &Endpoint, refusal: Refusal) {
        self.0.push((endpoint.base.as_str().trim_end_matches('/').to_owned(), refusal));
    }

    /// One error of all: what may pass by itself counts most, then what the user can mend.
    pub(super) fn into_error(self, what: String) -> ImageError {
        let kind = self.0.iter().map(|(_, refusal)| refusal.kind).max().unwrap_or(Kind::Unavailable);
        let answers = self.to_string();
        match kind {
            Kind::NotFound => ImageError::NotFound { what, answers },
            Kind::BadAnswer => ImageError::BadAnswer { what, answers },
            Kind::Unauthorized => ImageError::Unauthorized { what, answers },
            Kind::Unavailable => ImageError::Unavailable { what, answers },
        }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (place, refusal)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{place}: {}", refusal.reason)?;
        }
        Ok(())
    }
}
