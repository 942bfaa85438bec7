//! A registry of a case's own, inside the case's program: it serves the images of `tests/images`, or those that the case made
//! ([`crate::image`]), at once and whole, and is slow, broken, false or locked where the case says so.
//!
//! What an honest registry does is asked of the node's real one ([`crate::cri::REGISTRY`]); this one is for faults that a real one
//! cannot be made to have.

use crate::artefacts;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `/v2/isopod/NAME/...`, with the query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
}

/// What it is answered.
#[derive(Debug)]
pub struct Reply {
    /// Status code of HTTP.
    pub status: u16,
    /// Beside those that HTTP needs.
    pub headers: Vec<(String, String)>,
    /// What its length says, even where less of it is sent.
    pub body: Vec<u8>,
    /// How the body goes out.
    pub pace: Pace,
}

/// How a body goes out.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// At once.
    Whole,
    /// So many bytes of it, then the connection closes.
    Breaks(usize),
    /// So many bytes of it, then nothing, while the connection stays.
    Stalls(usize),
    /// In five pieces with pauses between them.
    Trickles(Duration),
    /// Byte by byte, with a pause before each.
    Drips(Duration),
}

/// A registry that runs until the program ends.
pub struct Registry {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
}

type Change = dyn Fn(&Request, Reply) -> Reply + Send + Sync;

impl Reply {
    /// An answer with a body and nothing special.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), pace: Pace::Whole }
    }

    /// The answer of one who wants credentials.
    pub fn challenge(scheme: &str) -> Self {
        let mut reply = Self::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"log in first"}]}"#);
        reply.headers.push(("WWW-Authenticate".to_owned(), scheme.to_owned()));
        reply
    }
}

impl Request {
    /// Whether it is for a blob of that many bytes or more.
    pub fn is_large(&self, reply: &Reply) -> bool {
        self.path.contains("/blobs/") && reply.body.len() > 100_000
    }
}

impl Registry {
    /// Serves the images of `tests/images`; `change` is given each request with its honest answer, and answers what is sent.
    pub fn serve(change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Result<Self> {
        Self::serve_layouts(&artefacts::images()?, change)
    }

    /// Serves the images of a directory that holds an OCI layout for each, such as [`crate::image::Image::write`] makes.
    pub fn serve_layouts(
        layouts: &Path,
        change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let images = layouts.to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let asked = Arc::<Mutex<Vec<Request>>>::default();
        let (log, change): (_, Arc<Change>) = (Arc::clone(&asked), Arc::new(change));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (images, log, change) = (images.clone(), Arc::clone(&log), Arc::clone(&change));
                // A client that leaves in the middle is no fault of the case.
                std::thread::spawn(move || answer(stream, &images, &log, &*change).ok());
            }
        });
        Ok(Self { address, asked })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The full name of one of its images.
    pub fn name(&self, image: &str) -> String {
        format!("{}/isopod/{image}:latest", self.address)
    }

    /// The requests so far whose path has `part`.
    pub fn asked(&self, part: &str) -> Vec<Request> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

fn answer(
    stream: TcpStream,
    images: &Path,
    log: &Mutex<Vec<Request>>,
    change: &Change,
) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    log.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
    let honest = honest(images, &request).unwrap_or_else(|_| {
        Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#)
    });
    send(stream, &change(&request, honest))
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    // No case sends more than that.
    let mut lines = BufReader::new(stream.take(64 << 10)).lines();
    let first = lines.next().unwrap_or(Err(std::io::ErrorKind::UnexpectedEof.into()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    Ok(Request { path, headers })
}

/// What the distribution specification has for the request: any tag is the image's only one.
fn honest(images: &Path, request: &Request) -> Result<Reply> {
    let path = request.path.split('?').next().unwrap_or_default();
    let (name, rest) =
        path.strip_prefix("/v2/isopod/").and_then(|p| p.split_once('/')).context("not an image")?;
    let layout = images.join(name);
    let (kind, reference) = rest.split_once('/').context("neither manifest nor blob")?;
    let digest = match (kind, reference.strip_prefix("sha256:")) {
        (_, Some(digest)) => digest.to_owned(),
        ("manifests", None) => digest_of_tag(&layout)?,
        (_, None) => anyhow::bail!("a blob has no tag"),
    };
    let body = fs::read(blob(&layout, &digest))?;
    let range = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-'));
    let Some(from) = range.and_then(|from| from.parse::<usize>().ok()).filter(|from| *from < body.len())
    else {
        return Ok(Reply::new(200, body));
    };
    let mut reply = Reply::new(206, &body[from..]);
    let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
    reply.headers.push(("Content-Range".to_owned(), range));
    Ok(reply)
}

/// The file of a blob in a layout; `digest` is without its algorithm.
pub(crate) fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs/sha256").join(digest)
}

/// The digest of a layout's only manifest, without its algorithm.
pub(crate) fn digest_of_tag(layout: &Path) -> Result<String> {
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str().context("no manifest")?;
    Ok(digest.trim_start_matches("sha256:").to_owned())
}

/// The digests of an image's layers as they are in the registry, the lowest first.
pub fn layers(image: &str) -> Result<Vec<String>> {
    let layout = artefacts::images()?.join(image);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(blob(&layout, &digest_of_tag(&layout)?))?)?;
    let layers = manifest["layers"].as_array().context("not the manifest of one image")?;
    layers.iter().map(|layer| Ok(layer["digest"].as_str().context("no digest")?.to_owned())).collect()
}

/// The file of an image's layer, the lowest is 0, as it was built.
pub fn layer_path(image: &str, number: usize) -> Result<PathBuf> {
    let layers = layers(image)?;
    let digest = layers.get(number).with_context(|| format!("{image} has {} layers", layers.len()))?;
    Ok(blob(&artefacts::images()?.join(image), digest.trim_start_matches("sha256:")))
}

fn send(mut stream: TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    head += &format!("Content-Length: {}\r\n", reply.body.len());
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let body = &reply.body;
    match reply.pace {
        Pace::Whole => stream.write_all(body),
        Pace::Breaks(after) => stream.write_all(&body[..after.min(body.len())]),
        Pace::Stalls(after) => {
            stream.write_all(&body[..after.min(body.len())])?;
            // Until the client goes.
            stream.read(&mut [0]).map(drop)
        }
        Pace::Drips(pause) => body.iter().try_for_each(|byte| {
            std::thread::sleep(pause);
            stream.write_all(&[*byte])
        }),
        Pace::Trickles(pause) => body.chunks(body.len().div_ceil(5).max(1)).try_for_each(|piece| {
            std::thread::sleep(pause);
            stream.write_all(piece)
        }),
    }
}
