//! One blob from its registry: taken up again where a connection broke, checked against size and digest at its end. A place
//! that sends less than a minimum rate is given up like one that sends nothing.
//!
//! Used by `layer` for layers, piece by piece, and by `pull` for configurations, whole. What [`Download::next`] gives
//! is unchecked until it has given `None`.

use super::answer::{Kind, Refusal, Refusals, reason};
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::manifest::Descriptor;
use super::rate::MinimumRate;
use super::session::{Place, Session};
use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode};
use std::time::Instant;

/// As many bytes since the last break count as progress: attempts are counted anew.
const PROGRESS: u64 = 64 << 10;

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
            body: None,
            attempt: 0,
            rate: new_rate(session),
            refusals,
        }
    }

    /// The next piece; `None` once the whole is there and is what its digest says.
    ///
    /// # Errors
    /// [`ImageError::Corrupt`] at the end; what the places said, once all have refused.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            if self.received == self.size {
                let got = self.hasher.clone().finish();
                if got == self.digest {
                    return Ok(None);
                }
                return Err(ImageError::Corrupt { what: self.what.clone(), expected: self.digest, got });
            }
            if let Some(refusal) = self.rate.refusal() {
                self.next_place(refusal)?;
            }
            let begun = Instant::now();
            let piece = self.piece().await;
            self.rate.waited(begun.elapsed());
            match piece {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => return Ok(Some(piece)),
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
        while let Some(piece) = self.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    async fn piece(&mut self) -> Result<Bytes, Refusal> {
        if let Some(mut given) = self.given.take() {
            let piece = given.split_to(given.len().min(PIECE));
            self.given = Some(given).filter(|rest| !rest.is_empty());
            return self.take(piece);
        }
        let body = match &mut self.body {
            Some(body) => body,
            none => {
                let response = self.session.blob(&self.places[0], self.digest, self.received).await?;
                let skip = skip(response.status(), response.headers(), self.received)?;
                none.insert(Body { response, skip, begun_at: self.received })
            }
        };
        let broke_off = |how: String| {
            Refusal::unavailable(format!("broke off after {} of {} bytes{how}", self.received, self.size))
        };
        let chunk =
            body.response.chunk().await.map_err(|error| broke_off(format!(" ({})", reason(&error))))?;
        let mut chunk = chunk.ok_or_else(|| broke_off(String::new()))?;
        self.rate.received(chunk.len());
        let known = body.skip.min(chunk.len() as u64);
        body.skip -= known;
        let new = chunk.split_off(usize::try_from(known).unwrap_or(chunk.len()));
        self.take(new)
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
        self.rate = new_rate(self.session);
        if self.places.is_empty() {
            return Err(self.all_refused());
        }
        Ok(())
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
