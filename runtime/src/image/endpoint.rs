//! A place that has images, and how it wants to be asked: its address, its token service, the credentials that it may see.
//!
//! ```text
//! request --> 401 + challenge -----> token service -----> request with the token
//!    |
//!    +------> redirect --> elsewhere: 401 + challenge --> its token service, as nobody --> request there with that token
//! ```
//!
//! Credentials are for the place that the user named, and for the token service that this place names. What it redirects to
//! is another place, even where that asks for them.
//!
//! Made by `registry`; used by `session`.

use super::answer::{Refusal, accept_status, read_bounded, said, send};
use super::auth::{Challenge, Credentials};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Largest answer of a token service, in bytes.
const LARGEST_TOKEN: u64 = 1 << 20;

/// Most requests for one answer: unauthenticated and authenticated, at the place itself and at those it redirects to.
const MOST_ROUNDS: usize = 6;

/// How a place is reached.
#[derive(Clone)]
pub struct Clients {
    /// For requests: follows redirects, and leaves credentials behind where one leads to another host.
    pub any: Client,
    /// For forms with secrets in their body: follows no redirect to another host.
    pub same_host: Client,
}

/// A place that may have the image.
pub struct Endpoint {
    base: Url,
    repository: String,
    namespace: Option<String>,
    clients: Clients,
    credentials: Credentials,
    /// What the last challenge of each place led to, used until it is refused: of this place itself, and of those that it
    /// redirects to, by scheme, host and port.
    authorizations: Mutex<HashMap<String, HeaderValue>>,
}

/// Who asks a token service, and for what.
struct TokenRequest<'a> {
    credentials: &'a Credentials,
    service: Option<&'a str>,
    scope: &'a str,
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
        Self { base, repository, namespace, clients, credentials, authorizations: Mutex::default() }
    }

    /// Its address, as errors have it.
    pub fn name(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// Whether what is sent to it can be read on the way.
    pub fn is_plain(&self) -> bool {
        self.base.scheme() != "https"
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
            let response = send(request, stall).await?;
            let answered = origin(response.url());
            let refused = response.status() == StatusCode::UNAUTHORIZED;
            if !refused || challenged.contains(&answered) || rounds == MOST_ROUNDS {
                return accept_status(response).await;
            }
            let unused = answered != asked && self.authorization(&answered).is_some();
            if !unused {
                let authorization = self.answer(&response, stall).await?;
                self.authorizations
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(answered.clone(), authorization);
                challenged.insert(answered.clone());
            }
            if answered != origin(&self.base) {
                url = response.url().clone();
            }
        }
    }

    fn authorization(&self, origin_asked: &str) -> Option<HeaderValue> {
        let authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        let known = authorizations.get(origin_asked).cloned();
        match &self.credentials {
            Credentials::Bearer(token) if origin_asked == origin(&self.base) => {
                known.or_else(|| secret(&format!("Bearer {token}")))
            }
            _ => known,
        }
    }

    /// Answers the challenge of a 401: as the user at this place, as nobody at places that it redirects to.
    async fn answer(&self, response: &Response, stall: Duration) -> Result<HeaderValue, Refusal> {
        let elsewhere = origin(response.url()) != origin(&self.base);
        let credentials = if elsewhere { &Credentials::Anonymous } else { &self.credentials };
        let told = |refusal: Refusal| match elsewhere {
            true => Refusal {
                reason: format!("redirects to {}, which {}", origin(response.url()), refusal.reason),
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
                self.token(&realm, &request, stall).await.map_err(told)
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

    /// Gets a bearer token from the token service that a challenge names (distribution token specification; OAuth2 for
    /// refresh tokens). A service without TLS gets no credentials on behalf of a registry with it.
    async fn token(
        &self,
        realm: &str,
        wanted: &TokenRequest<'_>,
        stall: Duration,
    ) -> Result<HeaderValue, Refusal> {
        let url = Url::parse(realm).map_err(|_| Refusal::bad_answer("names no usable token service"))?;
        let exposed = !self.is_plain() && url.scheme() != "https";
        if exposed && *wanted.credentials != Credentials::Anonymous {
            return Err(Refusal::bad_answer("would have credentials sent without TLS"));
        }
        let response = send(self.token_request(url, wanted), stall).await?;
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
        let mut tokens =
            [token.token, token.access_token].into_iter().flatten().filter(|token| !token.is_empty());
        let token = tokens.next().ok_or_else(|| Refusal::bad_answer("token service sent no token"))?;
        secret(&format!("Bearer {token}"))
            .ok_or_else(|| Refusal::bad_answer("token service sent a broken token"))
    }

    fn token_request(&self, mut url: Url, request: &TokenRequest<'_>) -> RequestBuilder {
        let scope = Some(("scope", request.scope)).filter(|(_, scope)| !scope.is_empty());
        let wanted = scope.into_iter().chain(request.service.map(|service| ("service", service)));
        if let Credentials::Refresh(token) = request.credentials {
            // a form has the syntax of a query
            let mut form = url.clone();
            form.set_query(None);
            let fixed = [("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "isopod")];
            form.query_pairs_mut().extend_pairs(wanted).extend_pairs(fixed);
            let form = form.query().unwrap_or_default().to_owned();
            let request = self.clients.same_host.post(url);
            return request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
        }
        url.query_pairs_mut().extend_pairs(wanted);
        let get = self.clients.any.get(url);
        match request.credentials {
            Credentials::Basic { username, password } => get.basic_auth(username, Some(password)),
            _ => get,
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Scheme, host and port: what credentials are given to.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// A header value that logs leave out.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
