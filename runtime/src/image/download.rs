//! One blob from its registry: taken up again where a connection broke, checked against size and digest at its end. A place
//! that sends less than a minimum rate is given up like one that sends nothing.
//!
//! All bytes of a blob come from one origin: scheme, host and port of what answered, after all redirects.
//! Whoever could put its own bytes before those of another place could tell from what becomes of the whole
//! what that place has, and this node may reach places that others do not. So a blob is begun anew where
//! another origin would send the rest.
//!
//! Used by `layer` for layers, piece by piece, and by `describe` for configurations, whole. What
//! [`Download::next`] gives is unchecked until it has given `None`.

use super::answer::{Kind, Refusal, Refusals, broke_off, origin, reason};
use super::descriptor::Descriptor;
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::rate::MinimumRate;
use super::session::{Place, Session};
use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode};
use std::time::Instant;

/// As many bytes since the last break count as progress: attempts are counted anew.
const PROGRESS: u64 = 64 << 10;

/// Most times that one blob is begun, at one place and the next.
pub const MOST_BEGINNINGS: usize = 8;

/// Content in the manifest is given in pieces of so many bytes, as if it came from the network: each is hashed in between.
const PIECE: usize = 64 << 10;

/// A blob that is being downloaded.
pub struct Download<'a> {
    session: &'a Session,
    what: String,
    digest: Digest,
    size: u64,
    received: u64,
    hasher: Hasher,
    /// The content itself, where the manifest held it.
    given: Option<Bytes>,
    /// Why addresses that the manifest names are not asked; absent where they are, or are none.
    elsewhere: Option<String>,
    /// Places still to ask, the present one first.
    places: Vec<Place>,
    /// How far the order of places is rotated, so that the present one is the first.
    turn: usize,
    /// What sent the bytes received: scheme, host and port.
    origin: Option<String>,
    body: Option<Body>,
    attempt: u32,
    /// Whether the present place sends enough.
    rate: MinimumRate,
    refusals: Refusals,
}

struct Body {
    response: Response,
    /// Bytes at its beginning that are known already: the place does not know ranges.
    skip: u64,
    begun_at: u64,
    /// Whether it is of the place that was asked, and errors may tell of it.
    is_own: bool,
}

impl<'a> Download<'a> {
    /// Begins to download `descriptor`, named `what` in errors. `start` rotates the order of places, for a second try after
    /// one place sent corrupt content.
    pub fn new(session: &'a Session, descriptor: &Descriptor, what: String, start: usize) -> Self {
        let mut refusals = Refusals::default();
        let mut places = session.places_of(descriptor, &mut refusals);
        let turn = start % places.len().max(1);
        places.rotate_left(turn);
        let given = Some(descriptor.data.clone()).filter(|data| !data.is_empty());
        Self {
            session,
            what,
            digest: descriptor.digest,
            size: descriptor.size,
            received: 0,
            hasher: Hasher::default(),
            given,
            elsewhere: session.not_asked().filter(|_| !descriptor.urls.is_empty()),
            places,
            turn: start,
            origin: None,
            body: None,
            attempt: 0,
            rate: new_rate(session),
            refusals,
        }
    }

    /// The next piece; `None` once the whole is there and is what its digest says.
    ///
    /// # Errors
    /// [`ImageError::Corrupt`] at the end; what the places said, once all have refused;
    /// [`ImageError::BrokenOff`] where another origin would send the rest: what was given so far counts no
    /// more, and the next call begins with the first byte.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            if self.received == self.size {
                let got = self.hasher.clone().finish();
                if got == self.digest {
                    return Ok(None);
                }
                tracing::debug!(blob = %self.digest, %got, "corrupt");
                return Err(ImageError::Corrupt { what: self.what.clone(), expected: self.digest, got });
            }
            if let Some(refusal) = self.rate.refusal() {
                self.next_place(refusal)?;
            }
            let begun = Instant::now();
            let piece = self.piece().await;
            self.rate.waited(begun.elapsed());
            match piece {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => return Ok(Some(piece)),
                Ok(None) => return Err(self.begin_anew()),
                Err(refusal) => self.recover(refusal).await?,
            }
        }
    }

    /// The whole blob in memory.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`] before a byte is asked for, where it is larger than `limit`; else as [`Self::next`].
    pub async fn whole(mut self, limit: u64, key: &'static str) -> Result<Vec<u8>, ImageError> {
        if self.size > limit {
            return Err(ImageError::TooLarge { what: self.what, limit, key });
        }
        let mut bytes = Vec::new();
        let mut beginnings = 1;
        loop {
            match self.next().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => return Ok(bytes),
                Err(ImageError::BrokenOff { .. }) if beginnings < MOST_BEGINNINGS => {
                    beginnings += 1;
                    bytes.clear();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What comes next; `None` where that is of another origin than what was received.
    async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        if let Some(mut given) = self.given.take() {
            let piece = given.split_to(given.len().min(PIECE));
            self.given = Some(given).filter(|rest| !rest.is_empty());
            return self.take(piece).map(Some);
        }
        let body = match &mut self.body {
            Some(body) => body,
            none => {
                let response = self.session.blob(&self.places[0], self.digest, self.received).await?;
                let skip = skip(response.status(), response.headers(), self.received)?;
                let (origin, is_own) =
                    (origin(response.url()), self.session.may_quote(&self.places[0], response.url()));
                if self.received > 0 && self.origin.as_ref() != Some(&origin) {
                    return Ok(None);
                }
                self.origin = Some(origin);
                none.insert(Body { response, skip, begun_at: self.received, is_own })
            }
        };
        let is_own = body.is_own;
        let broke_off = |how: String| {
            broke_off(format!("broke off after {} of {} bytes{how}", self.received, self.size), is_own)
        };
        let chunk =
            body.response.chunk().await.map_err(|error| broke_off(format!(" ({})", reason(&error))))?;
        let mut chunk = chunk.ok_or_else(|| broke_off(String::new()))?;
        let known = body.skip.min(chunk.len() as u64);
        body.skip -= known;
        let new = chunk.split_off(usize::try_from(known).unwrap_or(chunk.len()));
        // bytes that are sent again get nobody on
        self.rate.received(new.len());
        self.take(new).map(Some)
    }

    /// Takes bytes that follow those received.
    fn take(&mut self, new: Bytes) -> Result<Bytes, Refusal> {
        if new.len() as u64 > self.size - self.received {
            return Err(Refusal::bad_answer(format!("sent more than the {} bytes of the blob", self.size)));
        }
        self.hasher.update(&new);
        self.received += new.len() as u64;
        Ok(new)
    }

    /// Waits for another attempt at the same place, or turns to the next one.
    async fn recover(&mut self, refusal: Refusal) -> Result<(), ImageError> {
        let body = self.body.take();
        if body.is_some_and(|body| self.received - body.begun_at >= PROGRESS) {
            self.attempt = 0;
        }
        let begun = Instant::now();
        match self.session.pause_or_give_up(refusal, &mut self.attempt).await {
            Ok(()) => self.rate.waited(begun.elapsed()),
            Err(refusal) => self.next_place(refusal)?,
        }
        Ok(())
    }

    /// Turns to the next place, as the present one has refused.
    fn next_place(&mut self, refusal: Refusal) -> Result<(), ImageError> {
        self.body = None;
        let place = self.places.remove(0);
        self.refusals.add(self.session.name_of(&place), refusal);
        self.attempt = 0;
        self.turn += 1;
        self.rate = new_rate(self.session);
        if self.places.is_empty() {
            return Err(self.all_refused());
        }
        if self.received > 0 { Err(self.begin_anew()) } else { Ok(()) }
    }

    /// Forgets what was received, as the rest would be of another origin.
    fn begin_anew(&mut self) -> ImageError {
        let (what, blob, next) = (self.what.clone(), self.digest, self.turn);
        let place = self.places.first().map(|place| self.session.name_of(place)).unwrap_or_default();
        let answers =
            format!("{place}: broke off, and the rest would come from elsewhere than the beginning");
        (self.received, self.hasher, self.origin, self.body) = (0, Hasher::default(), None, None);
        ImageError::BrokenOff { what, answers, blob, next }
    }

    fn all_refused(&mut self) -> ImageError {
        let refusals = std::mem::take(&mut self.refusals);
        match &self.elsewhere {
            Some(why) if refusals.kind() == Kind::NotFound => {
                let reason =
                    format!("is not in the registry ({refusals}), only at addresses in its manifest: {why}");
                ImageError::Unsupported { what: self.what.clone(), reason }
            }
            _ => refusals.into_error(self.what.clone()),
        }
    }
}

fn new_rate(session: &Session) -> MinimumRate {
    let patience = session.patience();
    MinimumRate::new(patience.least_rate, patience.grace())
}

/// How many bytes of an answer to a request from byte `from` on are known already (RFC 9110, 14.4).
fn skip(status: StatusCode, headers: &HeaderMap, from: u64) -> Result<u64, Refusal> {
    match status {
        StatusCode::OK => Ok(from),
        StatusCode::PARTIAL_CONTENT => {
            let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let start =
                range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
            match start.and_then(|start| from.checked_sub(start)) {
                Some(known) => Ok(known),
                None => {
                    Err(Refusal::bad_answer(format!("sent another range than the one from byte {from} on")))
                }
            }
        }
        status => Err(Refusal::bad_answer(format!("status {}", status.as_u16()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    fn known(status: u16, range: &str, from: u64) -> Option<u64> {
        let headers = [(CONTENT_RANGE, HeaderValue::from_str(range).unwrap())].into_iter().collect();
        skip(StatusCode::from_u16(status).unwrap(), &headers, from).ok()
    }

    #[test]
    fn answer_begins_at_what_was_asked_for_or_before() {
        assert_eq!(known(200, "", 10), Some(10));
        assert_eq!(known(206, "bytes 10-19/20", 10), Some(0));
        assert_eq!(known(206, "bytes 4-19/*", 10), Some(6));
        for range in [
            "",
            "bytes",
            "bytes 11-19/20",
            "bytes */20",
            "bytes -5",
            "items 10-19/20",
            "bytes 99999999999999999999-",
        ] {
            assert_eq!(known(206, range, 10), None, "{range:?}");
        }
        assert_eq!(known(204, "bytes 10-19/20", 10), None);
    }

    proptest! {
        #[test]
        fn no_more_is_known_than_was_received(
            status in prop_oneof![Just(200u16), Just(206), 100u16..600],
            range in prop_oneof!["[ -~]{0,40}", "bytes [0-9]{1,22}-[0-9]{0,3}/[0-9*]{1,3}"],
            from: u64,
        ) {
            prop_assert!(known(status, &range, from).is_none_or(|known| known <= from));
        }
    }
}
