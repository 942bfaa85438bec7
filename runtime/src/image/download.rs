//! One blob from its registry: taken up again where a connection broke, checked against size and digest at its end.
//!
//! Used by `layer` for layers, piece by piece, and by `pull` for configurations, whole. What [`Download::next`] gives
//! is unchecked until it has given `None`.

use super::answer::{Kind, Refusal, Refusals, reason};
use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::manifest::Descriptor;
use super::session::{Place, Session};
use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode};

/// As many bytes since the last break count as progress: attempts are counted anew.
const PROGRESS: u64 = 64 << 10;

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
        let whole =
            |data: &&Vec<u8>| data.len() as u64 == descriptor.size && Digest::of(data) == descriptor.digest;
        let given = Some(&descriptor.data).filter(whole);
        Self {
            session,
            what,
            digest: descriptor.digest,
            size: descriptor.size,
            received: 0,
            hasher: Hasher::default(),
            given: given.map(|data| Bytes::from(data.clone())),
            elsewhere: session.not_asked().filter(|_| !descriptor.urls.is_empty()),
            places,
            body: None,
            attempt: 0,
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
            match self.piece().await {
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
        if let Some(given) = self.given.take() {
            return self.take(given);
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
        let Err(refusal) = self.session.pause_or_give_up(refusal, &mut self.attempt).await else {
            return Ok(());
        };
        let place = self.places.remove(0);
        self.refusals.add(self.session.name_of(&place), refusal);
        self.attempt = 0;
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
