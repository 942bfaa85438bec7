//! A registry on loopback for tests: serves what it is given over HTTP/1.1, one request per connection, and breaks, stalls
//! or refuses exactly where a test says so. And the images that it serves.

use super::digest::Digest;
use super::tar::build::{end, file};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET /v2/...` with the query.
    pub line: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection breaks off, and whether it hangs first.
    pub breaks_after: Option<(usize, bool)>,
    /// Pause before each byte of the body.
    pub drips: Option<Duration>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), breaks_after: None, drips: None }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Paths below `/v2/` and what is there.
pub type Shelf = HashMap<String, Vec<u8>>;

/// A running registry.
pub struct TestRegistry {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl TestRegistry {
    /// Serves what `answer` says.
    pub async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (log, answer) = (Arc::clone(&requests), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    let _ = serve(stream, &log, &*answer).await;
                });
            }
        });
        Self { address, requests }
    }

    /// Serves a shelf as it is, ranges included.
    pub async fn of(shelf: Shelf) -> Self {
        Self::start(move |request| from_shelf(&shelf, request)).await
    }

    /// Requests whose line contains `part`.
    pub fn asked(&self, part: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.line.contains(part)).cloned().collect()
    }

    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }
}

/// The honest answer to a request.
pub fn from_shelf(shelf: &Shelf, request: &Request) -> Reply {
    let path = request.line.split([' ', '?']).nth(1).unwrap_or_default().trim_start_matches("/v2/");
    let Some(body) = shelf.get(path) else {
        return Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#);
    };
    let range =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    match range.and_then(|from| from.parse::<usize>().ok()) {
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Reply::new(206, &body[from..]).header("Content-Range", range)
        }
        None => Reply::new(200, body.clone()),
    }
}

async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let request = read_request(&mut stream).await?;
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!(
        "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    if let Some(pause) = reply.drips {
        for byte in &reply.body {
            tokio::time::sleep(pause).await;
            stream.write_all(&[*byte]).await?;
        }
        return stream.shutdown().await;
    }
    let (end, hangs) = reply.breaks_after.unwrap_or((reply.body.len(), false));
    stream.write_all(&reply.body[..end.min(reply.body.len())]).await?;
    stream.flush().await?;
    if hangs {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    stream.shutdown().await
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Request> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await?);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let line = lines.next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Request { line, headers, body: String::from_utf8(body).unwrap() })
}

/// An image to be served.
pub struct TestImage {
    pub config: Value,
    /// Archives, the lowest first.
    pub layers: Vec<Vec<u8>>,
}

impl TestImage {
    /// Layers with one file each, which holds the given text.
    pub fn of_texts(texts: &[&str]) -> Self {
        let layers = texts.iter().map(|text| end(&[file("file", text)]));
        Self { config: json!({"User": "1000:1000", "Cmd": ["/bin/true"]}), layers: layers.collect() }
    }

    pub fn config_document(&self) -> Vec<u8> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| Digest::of(layer)).collect();
        json!({"architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
    }

    pub fn blobs(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(|layer| gzip(layer)).collect()
    }

    pub fn manifest(&self) -> Vec<u8> {
        self.manifest_of(&self.blobs())
    }

    /// With other blobs in place of its own.
    pub fn manifest_of(&self, blobs: &[Vec<u8>]) -> Vec<u8> {
        let kind = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let layers: Vec<_> = blobs.iter().map(|blob| descriptor(blob, kind)).collect();
        let config = descriptor(&self.config_document(), "application/vnd.docker.container.image.v1+json");
        json!({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": config, "layers": layers})
        .to_string()
        .into_bytes()
    }

    pub fn id(&self) -> Digest {
        Digest::of(&self.config_document())
    }

    /// Everything of the image below `repository`, the manifest under `tag` too.
    pub fn shelve(&self, shelf: &mut Shelf, repository: &str, tag: &str) {
        let manifest = self.manifest();
        shelf.insert(format!("{repository}/manifests/{tag}"), manifest.clone());
        shelf.insert(format!("{repository}/manifests/{}", Digest::of(&manifest)), manifest);
        for blob in self.blobs().into_iter().chain([self.config_document()]) {
            shelf.insert(format!("{repository}/blobs/{}", Digest::of(&blob)), blob);
        }
    }

    pub fn shelf(&self, repository: &str, tag: &str) -> Shelf {
        let mut shelf = Shelf::new();
        self.shelve(&mut shelf, repository, tag);
        shelf
    }

    /// As [`Self::shelf`], with other blobs in place of its own.
    pub fn shelf_of(&self, blobs: &[Vec<u8>], repository: &str, tag: &str) -> Shelf {
        let mut shelf = self.shelf(repository, tag);
        shelf.insert(format!("{repository}/manifests/{tag}"), self.manifest_of(blobs));
        shelf.extend(
            blobs.iter().map(|blob| (format!("{repository}/blobs/{}", Digest::of(blob)), blob.clone())),
        );
        shelf
    }
}

pub fn descriptor(content: &[u8], kind: &str) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(content), "size": content.len()})
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
