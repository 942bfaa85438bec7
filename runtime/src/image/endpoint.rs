//! A place that has images, and how it wants to be asked: its address, its token service, the credentials that it may see.
//!
//! ```text
//! request --> 401 + challenge -----> token service -----> request with the token
//!    |
//!    +------> redirect --> elsewhere: 401 + challenge --> its token service, as nobody --> request there with that token
//! ```
//!
//! Credentials are for the place that the user named, and for the token service that this place names. What it redirects to
//! is another place, even where that asks for them. Only the place itself is quoted in errors: of a token service elsewhere, and of
//! what it redirects to, the status is told, or that it cannot be reached, as a hostile registry may name
//! what only this node reaches.
//!
//! Made by `registry`; used by `session`.

use super::answer::{
    Refusal, accept_foreign, accept_status, is_own, origin, read_bounded, said, send, shown_origin,
};
use super::auth::{Challenge, Credentials};
use super::destinations::{AllowedHost, Destinations};
use crate::lock::lock;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Largest answer of a token service, in bytes: what it holds goes into a header, which servers take 8 to 64
/// KiB of.
const LARGEST_TOKEN: u64 = 64 << 10;

/// Most places that a registry redirects to whose tokens are kept. It may name a new one for each request, a
/// port of the same host too; images that are served well come from two or three.
const MOST_ELSEWHERE: usize = 8;

/// Most requests for one answer: unauthenticated and authenticated, at the place itself and at those it redirects to.
const MOST_ROUNDS: usize = 6;

/// How a place is reached.
#[derive(Clone)]
pub struct Clients {
    /// For requests: follows redirects, and leaves credentials behind where one leads to another host.
    pub any: Client,
    /// For forms with secrets in their body: follows no redirect to another host.
    pub same_host: Client,
    /// Where answers may lead.
    pub destinations: Arc<Destinations>,
}

/// A place that may have the image.
pub struct Endpoint {
    base: Url,
    repository: String,
    namespace: Option<String>,
    clients: Clients,
    /// Lets its own host be wherever the user or the configuration has it.
    _allowed: AllowedHost,
    credentials: Credentials,
    authorizations: Mutex<Authorizations>,
}

/// What the last challenge of each place led to, used until it is refused.
#[derive(Default)]
struct Authorizations {
    /// Of the place itself.
    own: Option<HeaderValue>,
    /// Of those that it redirects to, by scheme, host and port; the latest last, [`MOST_ELSEWHERE`] of them.
    elsewhere: VecDeque<(String, HeaderValue)>,
}

/// Who asks a token service, and for what.
struct TokenRequest<'a> {
    credentials: &'a Credentials,
    service: Option<&'a str>,
    scope: &'a str,
}

/// Where a token service is asked.
#[derive(Debug)]
pub struct TokenAddress {
    /// The address.
    pub url: Url,
    /// The form that is sent there, where it holds a secret; else the query says all.
    pub form: Option<String>,
}

impl Endpoint {
    /// A place; `namespace` is the registry that a mirror stands for.
    pub fn new(
        base: Url,
        repository: String,
        namespace: Option<String>,
        clients: Clients,
        credentials: Credentials,
    ) -> Self {
        let allowed = clients.destinations.allow(&base);
        let authorizations = Mutex::default();
        Self { base, repository, namespace, clients, _allowed: allowed, credentials, authorizations }
    }

    /// Its address, as errors have it.
    pub fn name(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// Its address.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// The address of something of the image.
    pub fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{path}", self.repository));
        url
    }

    /// One request, with a round of authentication at each place that asks for it. A body follows in the answer.
    pub async fn get(
        &self,
        path: &str,
        accept: &str,
        from: u64,
        stall: Duration,
    ) -> Result<Response, Refusal> {
        let mut url = self.url(path);
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let mut challenged = BTreeSet::new();
        let mut rounds = 0;
        loop {
            rounds += 1;
            let asked = origin(&url);
            let mut request = self.clients.any.get(url.clone()).header(ACCEPT, accept);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = self.authorization(&asked) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = send(request, stall, Some(&self.base)).await?;
            let answered = origin(response.url());
            let refused = response.status() == StatusCode::UNAUTHORIZED;
            if !refused || challenged.contains(&answered) || rounds == MOST_ROUNDS {
                return self.accept(response).await;
            }
            let unused = answered != asked && self.authorization(&answered).is_some();
            if !unused {
                let authorization = self.answer(&response, stall).await?;
                self.keep(&answered, authorization);
                challenged.insert(answered.clone());
            }
            if answered != origin(&self.base) {
                url = response.url().clone();
            }
        }
    }

    /// Gives back an answer that is what was asked for.
    async fn accept(&self, response: Response) -> Result<Response, Refusal> {
        if self.is_own(response.url()) {
            return accept_status(response).await;
        }
        let elsewhere = shown_origin(response.url());
        accept_foreign(response).map_err(|refusal| Refusal {
            reason: format!("redirects to {elsewhere}, which answers {}", refusal.reason),
            ..refusal
        })
    }

    /// Whether an address is at this place, and not at one that it leads to.
    fn is_own(&self, url: &Url) -> bool {
        is_own(url, Some(&self.base))
    }

    fn authorization(&self, origin_asked: &str) -> Option<HeaderValue> {
        let authorizations = self.authorizations();
        if origin_asked != origin(&self.base) {
            let mut elsewhere = authorizations.elsewhere.iter();
            return elsewhere.find(|(known, _)| known == origin_asked).map(|(_, value)| value.clone());
        }
        let known = authorizations.own.clone();
        match &self.credentials {
            Credentials::Bearer(token) => known.or_else(|| secret(&format!("Bearer {token}"))),
            _ => known,
        }
    }

    /// Keeps what a challenge of `answered` led to, in place of the oldest of too many.
    fn keep(&self, answered: &str, authorization: HeaderValue) {
        let mut authorizations = self.authorizations();
        if answered == origin(&self.base) {
            authorizations.own = Some(authorization);
            return;
        }
        let elsewhere = &mut authorizations.elsewhere;
        elsewhere.retain(|(known, _)| known != answered);
        elsewhere.push_back((answered.to_owned(), authorization));
        if elsewhere.len() > MOST_ELSEWHERE {
            elsewhere.pop_front();
        }
    }

    fn authorizations(&self) -> MutexGuard<'_, Authorizations> {
        lock(&self.authorizations)
    }

    /// Answers the challenge of a 401: as the user at this place, as nobody at places that it redirects to.
    async fn answer(&self, response: &Response, stall: Duration) -> Result<HeaderValue, Refusal> {
        let elsewhere = !self.is_own(response.url());
        let credentials = if elsewhere { &Credentials::Anonymous } else { &self.credentials };
        let told = |refusal: Refusal| match elsewhere {
            true => Refusal {
                reason: format!("redirects to {}, which {}", shown_origin(response.url()), refusal.reason),
                ..refusal
            },
            false => refusal,
        };
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let texts: Vec<_> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let unauthorized = |reason: &str| Err(told(Refusal::unauthorized(reason)));
        match (Challenge::parse(&texts.join(", ")), credentials) {
            (_, Credentials::Bearer(_)) => unauthorized("refuses the registry token"),
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let own = format!("repository:{}:pull", self.repository);
                // Only the other place knows what its repository is called.
                let scope = if elsewhere { scope.unwrap_or_default() } else { own };
                let request = TokenRequest { credentials, service: service.as_deref(), scope: &scope };
                let service =
                    token_service(&realm, response.url(), &self.clients.destinations).map_err(told)?;
                self.token(service, &request, stall).await.map_err(told)
            }
            (Some(Challenge::Basic), Credentials::Basic { username, password }) => {
                let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
                secret(&format!("Basic {encoded}"))
                    .ok_or_else(|| Refusal::unauthorized("wants a name and a password"))
            }
            (Some(Challenge::Basic), Credentials::Refresh(_)) => {
                unauthorized("takes name and password only, and an identity token was given")
            }
            (Some(Challenge::Basic), Credentials::Anonymous) => unauthorized("wants a name and a password"),
            (None, _) => unauthorized("refuses without saying how to authenticate"),
        }
    }

    /// Gets a bearer token from a token service (distribution token specification; OAuth2 for refresh tokens).
    async fn token(
        &self,
        service: Url,
        wanted: &TokenRequest<'_>,
        stall: Duration,
    ) -> Result<HeaderValue, Refusal> {
        let response = send(self.token_request(service, wanted), stall, Some(&self.base)).await?;
        let response = match (response.status(), self.is_own(response.url())) {
            (status @ (StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), own) => {
                let words = if own { said(response).await } else { format!("status {}", status.as_u16()) };
                return Err(Refusal::unauthorized(format!("token service refuses: {words}")));
            }
            (_, true) => accept_status(response).await?,
            (_, false) => accept_foreign(response)?,
        };
        let bytes = read_bounded(response, LARGEST_TOKEN, stall, Some(&self.base)).await?;
        token_in(&bytes).map_err(Refusal::bad_answer)
    }

    fn token_request(&self, service: Url, request: &TokenRequest<'_>) -> RequestBuilder {
        let TokenAddress { url, form } = request.address(service);
        if let Some(form) = form {
            let request = self.clients.same_host.post(url);
            return request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
        }
        let get = self.clients.any.get(url);
        match request.credentials {
            Credentials::Basic { username, password } => get.basic_auth(username, Some(password)),
            _ => get,
        }
    }
}

impl TokenRequest<'_> {
    /// Where it goes to, of `service`.
    fn address(&self, mut service: Url) -> TokenAddress {
        let scope = Some(("scope", self.scope)).filter(|(_, scope)| !scope.is_empty());
        let wanted = scope.into_iter().chain(self.service.map(|service| ("service", service)));
        let Credentials::Refresh(token) = self.credentials else {
            service.query_pairs_mut().extend_pairs(wanted);
            return TokenAddress { url: service, form: None };
        };
        // a form has the syntax of a query
        let mut form = service.clone();
        form.set_query(None);
        let fixed = [("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "isopod")];
        form.query_pairs_mut().extend_pairs(wanted).extend_pairs(fixed);
        let form = form.query().unwrap_or_default().to_owned();
        TokenAddress { url: service, form: Some(form) }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The authorization that the answer of a token service gives.
///
/// # Errors
/// Why it gives none.
pub fn token_in(answer: &[u8]) -> Result<HeaderValue, &'static str> {
    let none = "token service sent no token";
    let answer: Token = serde_json::from_slice(answer).map_err(|_| none)?;
    let mut tokens = [answer.token, answer.access_token].into_iter().flatten();
    let token = tokens.find(|token| !token.is_empty()).ok_or(none)?;
    secret(&format!("Bearer {token}")).ok_or("token service sent a broken token")
}

/// Where a challenge of a place leads, where it is one for a token, on a node whose configuration names
/// nobody; with an identity token or without. For the fuzz targets.
///
/// # Errors
/// Why the token service is not asked.
#[cfg(any(test, feature = "testing"))]
pub fn token_address(
    header: &str,
    place: &Url,
    identity: Option<&str>,
) -> Option<Result<TokenAddress, String>> {
    let Challenge::Bearer { realm, service, scope } = Challenge::parse(header)? else { return None };
    let credentials = identity.map_or(Credentials::Anonymous, |token| Credentials::Refresh(token.to_owned()));
    let scope = scope.unwrap_or_default();
    let request = TokenRequest { credentials: &credentials, service: service.as_deref(), scope: &scope };
    let service = token_service(&realm, place, &Destinations::default());
    Some(service.map(|service| request.address(service)).map_err(|refusal| refusal.reason))
}

/// The token service that `place` names in a challenge. Whoever runs the place chose it, so it must not be easier to overhear
/// than the place, nor be on this node or its link unless that was configured.
fn token_service(realm: &str, place: &Url, destinations: &Destinations) -> Result<Url, Refusal> {
    let url = Url::parse(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or_else(|| Refusal::bad_answer("names no usable token service"))?;
    if place.scheme() == "https" && url.scheme() != "https" {
        return Err(Refusal::bad_answer("names a token service without TLS, and has TLS itself"));
    }
    let refused = |reason| Refusal::bad_answer(format!("names a token service at {reason}"));
    destinations.check(&url, place).map_err(refused)?;
    Ok(url)
}

/// A header value that logs leave out.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegistryConfig;

    fn named(realm: &str, place: &str) -> Result<String, String> {
        let sections = [("169.254.1.1".to_owned(), RegistryConfig::default())].into();
        let service = token_service(realm, &Url::parse(place).unwrap(), &Destinations::new(&sections));
        service.map(|url| url.to_string()).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn registry_with_tls_has_a_token_service_with_tls() {
        let refused = named("http://auth.test/token", "https://r.test/v2/").unwrap_err();
        assert_eq!(refused, "names a token service without TLS, and has TLS itself");
        assert!(named("https://auth.test/token", "https://r.test/v2/").is_ok());
        assert!(named("https://auth.test/token", "http://r.test/v2/").is_ok());
        assert!(named("http://auth.test/token", "http://r.test/v2/").is_ok());
        for realm in ["", "token", "file:///etc/shadow", "data:,x", "unix:/run/x.sock"] {
            assert_eq!(named(realm, "http://r.test/v2/").unwrap_err(), "names no usable token service");
        }
    }

    #[test]
    fn registry_cannot_have_this_node_asked_for_tokens() {
        for realm in ["https://127.0.0.1:10250/pods", "https://[::1]/", "https://169.254.169.254/latest"] {
            let refused = named(realm, "https://r.test/v2/").unwrap_err();
            assert!(
                refused.contains("names a token service at") && refused.contains("this node"),
                "{refused}"
            );
        }
        assert!(named("http://169.254.169.254/latest", "http://r.test/v2/").is_err());
        assert!(
            named("https://169.254.1.1/token", "https://r.test/v2/").is_ok(),
            "the configuration names it"
        );
        assert!(named("http://127.0.0.1:5000/token", "http://127.0.0.1:5000/v2/").is_ok());
    }
}
