//! Records of containers as daemons up to 0.1 wrote them: with the container's configuration in the CRI's
//! words, as that crate serialised it.
//!
//! Called by `record`. Reads those fields that later versions keep. They are never written: a record that
//! changes is written in the present form.

use super::log_file::LogPath;
use super::record::{MappedLayer, Record, State, User};
use super::spec::{Description, ImageNames, Stdio, StdioSink};
use super::stop_signal;
use crate::resources::Resources;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct RecordV1 {
    sandbox_id: String,
    config: Config,
    image: Image,
    created_at_ns: i64,
    log_path: Option<PathBuf>,
    layers: Vec<MappedLayer>,
    user: User,
    #[serde(default)]
    stop_signal: Option<i32>,
    resources: Resources,
    state: State,
}

/// The CRI's `ContainerConfig`. Its mounts are left out: up to that version every one was refused.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    metadata: Option<Metadata>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    log_path: PathBuf,
    stdin: bool,
    stdin_once: bool,
    tty: bool,
}

#[derive(Default, Deserialize)]
struct Metadata {
    name: String,
    attempt: u32,
}

#[derive(Deserialize)]
struct Image {
    asked: String,
    reference: String,
    id: String,
    stop_signal: Option<String>,
}

/// Reads a record of version 1.
///
/// # Errors
/// Where it is none.
pub fn read(document: Value) -> Result<Record, serde_json::Error> {
    let read: RecordV1 = serde_json::from_value(document)?;
    let stdio = read.stdio();
    let RecordV1 { config, image, .. } = read;
    let metadata = config.metadata.unwrap_or_default();
    let description = Description {
        name: metadata.name,
        attempt: metadata.attempt,
        labels: config.labels,
        annotations: config.annotations,
        image: ImageNames { asked: image.asked, reference: image.reference, id: image.id },
        mounts: Vec::new(),
    };
    let of_image = image.stop_signal.as_deref().and_then(stop_signal::parse);
    Ok(Record {
        version: Record::VERSION,
        sandbox_id: read.sandbox_id,
        description,
        created_at_ns: read.created_at_ns,
        stdio,
        layers: read.layers,
        user: read.user,
        stop_signal: read.stop_signal.or(of_image).unwrap_or(stop_signal::DEFAULT),
        resources: read.resources,
        state: read.state,
    })
}

impl RecordV1 {
    /// Without a log that can be found its output is dropped, so that the container runs on.
    fn stdio(&self) -> Stdio {
        let Config { log_path: below, stdin, stdin_once, tty, .. } = &self.config;
        let sink = match self.log_path.as_deref().map(|path| LogPath::of_record(path, Path::new(below))) {
            None => StdioSink::Discard,
            Some(Some(path)) => StdioSink::CriLog(path),
            Some(None) => {
                let sandbox = &self.sandbox_id;
                tracing::error!(sandbox, "output is dropped: the log path of a container's record is wrong");
                StdioSink::Discard
            }
        };
        Stdio { stdin: *stdin, stdin_once: *stdin_once, terminal: *tty, sink }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Exit;

    /// As the daemon wrote it, but for the digests, which were longer.
    const DOCUMENT: &str = include_str!("testdata/record-v1.json");

    fn record() -> Record {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn all_that_is_kept_is_read() {
        let record = record();
        let Description { name, attempt, labels, annotations, image, .. } = &record.description;
        assert_eq!((name.as_str(), *attempt), ("web", 2));
        assert_eq!(labels["io.kubernetes.container.name"], "web");
        assert_eq!(annotations["io.kubernetes.container.hash"], "8a4b1d");
        assert_eq!((image.asked.as_str(), image.id.as_str()), ("registry.k8s.io/web:1", "sha256:c0ffee"));
        let log = record.stdio.log_path().unwrap().path();
        assert_eq!(log, Path::new("/var/log/pods/default_web_u1/web/2.log"));
        assert!(record.stdio.stdin && !record.stdio.terminal);
        assert_eq!(record.resources.memory_limit_in_bytes, 128 << 20);
        assert_eq!(record.layers[0].chain_id, "sha256:1a1a");
        assert_eq!(record.state, State::Running { started_at_ns: 1_790_000_001_000_000_000 });
        assert_eq!(record.user.uid, 1000);
        assert_eq!(record.stop_signal, libc::SIGQUIT, "the image's, as the pod names none");
    }

    #[test]
    fn it_is_written_in_the_present_form_and_read_again() {
        let mut record = record();
        record.state = State::Exited(Exit::lost(1, 2));
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!(written["version"], Record::VERSION);
        assert_eq!(written.get("config"), None);
        assert_eq!(serde_json::from_value::<Record>(written).unwrap(), record);
    }

    #[test]
    fn log_path_that_leaves_its_directory_is_dropped_and_the_container_is_not() {
        let odd = DOCUMENT.replace("\"log_path\": \"web/2.log\"", "\"log_path\": \"../web/2.log\"");
        assert_ne!(odd, DOCUMENT);
        let record: Record = serde_json::from_str(&odd).unwrap();
        assert_eq!(record.stdio.sink, StdioSink::Discard);
    }
}
