//! What a place answers to a request: sent with a deadline, read within bounds, and told apart where it is a refusal.
//!
//! Whoever made an image or runs a registry leads this node to other places by redirects, token services and
//! addresses in manifests, and reads the error of the pull. What only this node learns of these is logged and
//! not told: a refused connection tells of a port, a certificate of a name, and the end of an answer of its
//! length.
//!
//! Used by `endpoint`, `session` and `download`; `hosts` tells of redirects. It must not decide what is tried
//! again.

use super::error::ImageError;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use std::cell::RefCell;
use std::error::Error as _;
use std::fmt;
use std::time::{Duration, SystemTime};

/// Longest text of a registry that is passed on, in bytes.
const LONGEST_ANSWER: u64 = 4 << 10;

/// Longest address of another place that errors tell, in characters.
const LONGEST_ORIGIN: usize = 200;

tokio::task_local! {
    /// Where redirects have led the request that this task sends: the client's errors have the address asked
    /// first.
    static LED_TO: RefCell<Option<Url>>;
}

/// Why a place did not give what was asked for.
#[derive(Debug)]
pub struct Refusal {
    /// What it means for the next attempt.
    pub kind: Kind,
    /// What is told.
    pub reason: String,
    /// How long the place asks to wait.
    pub retry_after: Option<Duration>,
}

/// Kinds of refusals: the later, the more an error of several tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The place does not have it.
    NotFound,
    /// The place answered with nonsense.
    BadAnswer,
    /// The place wants other credentials, or any.
    Unauthorized,
    /// The place cannot be reached, or broke off: worth another attempt.
    Unavailable,
}

/// The refusals of all places, in order, each with the place.
#[derive(Debug, Default)]
pub struct Refusals(Vec<(String, Refusal)>);

/// Longest time that a registry may take for the words of a refusal.
const SAYING: Duration = Duration::from_secs(10);

/// Sends a request and waits for the head of its answer. Of a failure at another place than `own`, which is
/// absent where the address is of a manifest, it is told only that there was one.
pub async fn send(request: RequestBuilder, stall: Duration, own: Option<&Url>) -> Result<Response, Refusal> {
    let (client, request) = request.build_split();
    let request = request.map_err(|error| Refusal::bad_answer(reason(&error)))?;
    let asked = request.url().clone();
    let sending = async {
        let sent = tokio::time::timeout(stall, client.execute(request)).await;
        (sent, LED_TO.with(RefCell::take))
    };
    let (sent, led_to) = LED_TO.scope(RefCell::default(), sending).await;
    let refusal = match sent {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(error)) if error.is_builder() => return Err(Refusal::bad_answer(reason(&error))),
        // the words of the client's own policy, which hang on the address alone
        Ok(Err(error)) if error.is_redirect() => return Err(Refusal::unavailable(reason(&error))),
        // The client has the same limit for each of its waits.
        Ok(Err(error)) if !error.is_timeout() => Refusal::unavailable(reason(&error)),
        _ => Refusal::unavailable(format!("no answer within {} s", stall.as_secs_f32())),
    };
    let place = led_to.unwrap_or(asked);
    if is_own(&place, own) {
        return Err(refusal);
    }
    tracing::debug!(place = origin(&place), reason = refusal.reason, "cannot be reached");
    Err(Refusal::unavailable(match own {
        Some(_) => format!("leads to {}, which cannot be reached", shown_origin(&place)),
        None => "cannot be reached".to_owned(),
    }))
}

/// Notes where the request that this task sends is redirected to. For the policies of the clients.
pub fn note_redirect(url: &Url) {
    // none is noted where the request is not sent by `send`
    let _ = LED_TO.try_with(|led_to| *led_to.borrow_mut() = Some(url.clone()));
}

/// Whether an address is at the place `own`.
pub fn is_own(url: &Url, own: Option<&Url>) -> bool {
    own.is_some_and(|own| origin(own) == origin(url))
}

/// An origin as errors tell it.
pub fn shown_origin(url: &Url) -> String {
    origin(url).chars().take(LONGEST_ORIGIN).collect()
}

/// Scheme, host and port: what credentials are given to.
pub fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Gives back an answer that is what was asked for; a refusal is told with the registry's own words.
pub async fn accept_status(response: Response) -> Result<Response, Refusal> {
    if response.status().is_success() {
        return Ok(response);
    }
    let refusal = Refusal::of_status(&response);
    let words = said(response).await;
    let reason = format!("{} {words}", refusal.reason).trim_end().to_owned();
    Err(Refusal { reason, ..refusal })
}

/// Gives back an answer of an address that a manifest or a registry led to. Of a refusal only the status is told: whoever made
/// the image or runs the registry chose the address, and the words could be of a service that only this node reaches.
pub fn accept_foreign(response: Response) -> Result<Response, Refusal> {
    if response.status().is_success() { Ok(response) } else { Err(Refusal::of_status(&response)) }
}

/// The words of an error answer: those of the distribution specification, else its beginning.
pub async fn said(response: Response) -> String {
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
    let own = response.url().clone();
    let bytes = read_bounded(response, LONGEST_ANSWER, SAYING, Some(&own)).await.unwrap_or_default();
    let text = match serde_json::from_slice::<Errors>(&bytes) {
        Ok(Errors { errors }) if !errors.is_empty() => format!("{} {}", errors[0].code, errors[0].message),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    };
    text.chars().take(200).filter(|c| !c.is_control()).collect()
}

/// Reads a whole answer of at most `limit` bytes, which may take so long in all. How it broke off is told
/// only of an answer of the place `own`.
pub async fn read_bounded(
    mut response: Response,
    limit: u64,
    within: Duration,
    own: Option<&Url>,
) -> Result<Vec<u8>, Refusal> {
    let is_own = is_own(response.url(), own);
    let whole = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| broke_off(reason(&error), is_own))? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(Refusal::bad_answer(format!("sent more than {limit} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    let late = |_| Refusal::unavailable(format!("no whole answer within {} s", within.as_secs_f32()));
    tokio::time::timeout(within, whole).await.map_err(late)?
}

/// Refuses an answer that ended too early: `how` is told where the place itself broke off, and logged where
/// another did.
pub fn broke_off(how: String, is_own: bool) -> Refusal {
    if is_own {
        return Refusal::unavailable(how);
    }
    tracing::debug!(how, "an answer of another place broke off");
    Refusal::unavailable("broke off")
}

/// The innermost cause, which says most: "connection refused" and not "error sending request".
pub fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if error.is_timeout() && error.source().is_some() {
        return "timed out".to_owned();
    }
    cause.to_string()
}

/// How long an answer asks to wait, in seconds or until a date (RFC 9110, 10.2.3); a date has three forms, of which two
/// are obsolete. A date that is past asks for no pause.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

impl Refusal {
    /// The place cannot be reached, or broke off: worth another attempt.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Unavailable, reason: reason.into(), retry_after: None }
    }

    /// The place answered with nonsense.
    pub fn bad_answer(reason: impl Into<String>) -> Self {
        Self { kind: Kind::BadAnswer, reason: reason.into(), retry_after: None }
    }

    /// The place wants other credentials, or any.
    pub fn unauthorized(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Unauthorized, reason: reason.into(), retry_after: None }
    }

    /// What the status of an answer says, without its body.
    pub fn of_status(response: &Response) -> Self {
        let status = response.status();
        let kind = match status {
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Unauthorized,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Kind::Unavailable,
            status if status.is_server_error() => Kind::Unavailable,
            _ => Kind::BadAnswer,
        };
        let retry_after = retry_after(response.headers(), SystemTime::now());
        Self { kind, reason: format!("status {}", status.as_u16()), retry_after }
    }
}

impl Refusals {
    /// Adds what `place` said.
    pub fn add(&mut self, place: String, refusal: Refusal) {
        self.0.push((place, refusal));
    }

    /// What counts of them: what may pass by itself counts most, then what the user can mend.
    pub fn kind(&self) -> Kind {
        self.0.iter().map(|(_, refusal)| refusal.kind).max().unwrap_or(Kind::Unavailable)
    }

    /// One error of all.
    pub fn into_error(self, what: String) -> ImageError {
        let answers = self.to_string();
        match self.kind() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;
    use std::time::UNIX_EPOCH;

    /// The seconds that a header asks for at 06 Nov 1994 08:49:00 GMT.
    fn asked(text: &str) -> Option<u64> {
        let headers = [(RETRY_AFTER, HeaderValue::from_str(text).unwrap())].into_iter().collect();
        let now = UNIX_EPOCH + Duration::from_secs(784_111_740);
        retry_after(&headers, now).map(|pause| pause.as_secs())
    }

    #[test]
    fn pause_is_seconds_or_a_date_in_any_of_three_forms() {
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked(" 7 "), Some(7));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(asked("Sunday, 06-Nov-94 08:49:37 GMT"), Some(37));
        assert_eq!(asked("Sun Nov  6 08:49:37 1994"), Some(37));
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0), "a date that is past");
        for text in ["", "soon", "-1", "1.5", "Sun, 06 Nov 1994 25:49:37 GMT", "99999999999999999999"] {
            assert_eq!(asked(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_pause_is_read_or_ignored(text in "[ -~]{0,40}") {
            let _ = asked(&text);
        }
    }
}
