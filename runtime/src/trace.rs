//! Logs, and the phases of the last operations.
//!
//! Log lines go to standard error. Where the time of an operation went is read off its spans: an operation is a span whose
//! name is in [`OPERATIONS`], its phases are the spans below it. The last of each operation is kept in `phases.json` in the
//! state directory, for `isopod phases`. A module that wants a phase measured opens a span at info level; there is nothing
//! else to do.

use crate::config::{DaemonConfig, LogFormat};
use crate::hostile_text;
use crate::lock::lock;
use crate::store::{self, Durability};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Names of the spans whose phases are kept.
pub const OPERATIONS: [&str; 3] = ["RunPodSandbox", "CreateContainer", "StartContainer"];

/// One phase of an operation. Phases may overlap, and lie in one another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// The span's name, below its parents' names.
    pub name: String,
    /// From the operation's begin to the phase's, microseconds.
    pub begin_us: u64,
    /// How long it took, microseconds.
    pub took_us: u64,
}

/// The last run of one operation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// How long it took, microseconds.
    pub took_us: u64,
    /// Its phases, by their begin.
    pub phases: Vec<Phase>,
}

/// Operations by name.
pub type Operations = BTreeMap<String, Operation>;

/// Starts logging and the record of phases. Once in a process's life.
///
/// # Errors
/// Where the filter cannot be understood.
pub fn start(config: &DaemonConfig) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(&config.log_filter)?;
    let format = config.log_format;
    let writer = move || OneLine { format, to: io::stderr() };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let lines = match format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    };
    let ours = filter_fn(|about| {
        about.is_span()
            && *about.level() <= Level::INFO
            && about.target().starts_with(env!("CARGO_CRATE_NAME"))
    });
    let ours = ours.with_max_level_hint(LevelFilter::INFO);
    let phases = Phases::new(path(&config.state_dir)).with_filter(ours);
    // A second call finds a subscriber and leaves it: tests share a process.
    let _ = tracing_subscriber::registry().with(lines).with(phases).try_init();
    Ok(())
}

/// Writes each record as one printable line: what guests and images say reaches log records by many ways, and
/// must not forge a record of its own or turn a part of one around.
struct OneLine<W> {
    format: LogFormat,
    to: W,
}

impl<W: io::Write> io::Write for OneLine<W> {
    /// Takes a whole record with its line end, which is how `tracing_subscriber` writes them.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record.strip_suffix(b"\n").unwrap_or(record));
        let mut line = String::with_capacity(text.len() + 1);
        match self.format {
            LogFormat::Text => text.chars().for_each(|c| hostile_text::push(&mut line, c)),
            LogFormat::Json => text.chars().for_each(|c| push_json(&mut line, c)),
        }
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Appends a character of a JSON document. One that is not printable can only be within a string, where JSON
/// has an escape of its own.
fn push_json(line: &mut String, c: char) {
    let before = line.len();
    hostile_text::push(line, c);
    if !line[before..].starts_with(c) {
        line.truncate(before);
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(line, "\\u{unit:04x}").expect("writing to a string does not fail");
        }
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("phases.json")
}

/// The phases that a daemon with this state directory has recorded.
///
/// # Errors
/// Where there are none, or the file cannot be read.
pub fn recorded(state_dir: &Path) -> io::Result<Operations> {
    Ok(serde_json::from_slice(&fs::read(path(state_dir))?)?)
}

/// The phases as a table: begin and length in milliseconds, and a bar on the operation's own scale.
pub fn table(operations: &Operations) -> String {
    const WIDTH: u64 = 40;
    let mut text = String::new();
    let ms = |us: u64| format!("{}.{:02}", us / 1000, us % 1000 / 10);
    for name in OPERATIONS {
        let Some(operation) = operations.get(name) else { continue };
        let total = operation.took_us.max(1);
        writeln!(text, "{name:<28} {:>10} {:>10}", "begin ms", ms(operation.took_us))
            .expect("writing to a string does not fail");
        for phase in &operation.phases {
            let scaled = |us: u64| us.saturating_mul(WIDTH).div_ceil(total).min(WIDTH) as usize;
            let (before, bar) = (scaled(phase.begin_us), scaled(phase.took_us).max(1));
            let (begin, took) = (ms(phase.begin_us), ms(phase.took_us));
            writeln!(text, "  {:<26} {begin:>10} {took:>10}  {:before$}{:#<bar$}", phase.name, "", "")
                .expect("writing to a string does not fail");
        }
    }
    text
}

/// The layer that reads phases off spans.
struct Phases {
    path: PathBuf,
    turns: AtomicU64,
    last: Mutex<Operations>,
}

/// Kept with every span of ours.
#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    /// How many spans began before it: clocks may give two the same time.
    turn: u64,
}

/// Kept with an operation's span: its phases that ended, each with its turn.
struct Root(Vec<(u64, Phase)>);

impl Phases {
    fn new(path: PathBuf) -> Self {
        Self { path, turns: AtomicU64::new(0), last: Mutex::default() }
    }

    fn keep(&self, name: &str, operation: Operation) {
        let mut last = lock(&self.last);
        last.insert(name.to_owned(), operation);
        let (path, json) = (self.path.clone(), serde_json::to_vec_pretty(&*last));
        let write = move || {
            // Losing a measurement is no reason to fail, or to log from within the log.
            let _ = json.map(|json| store::replace(&path, &json, Durability::Process));
        };
        // The caller of the operation waits for the end of its span.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Phases {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        span.extensions_mut().insert(Begun { at: Instant::now(), turn });
        if OPERATIONS.contains(&span.name()) {
            span.extensions_mut().insert(Root(Vec::new()));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let now = Instant::now();
        let begun =
            |span: &tracing_subscriber::registry::SpanRef<'_, S>| span.extensions().get::<Begun>().copied();
        let Some(begin) = begun(&span) else { return };
        if let Some(Root(mut phases)) = span.extensions_mut().remove::<Root>() {
            phases.sort_by_key(|(turn, _)| *turn);
            let phases = phases.into_iter().map(|(_, phase)| phase).collect();
            self.keep(span.name(), Operation { took_us: micros(now - begin.at), phases });
            return;
        }
        let mut name = span.name().to_owned();
        for parent in span.scope().skip(1) {
            let Some(parent_begin) = begun(&parent) else { continue };
            if let Some(Root(phases)) = parent.extensions_mut().get_mut::<Root>() {
                let (begin_us, took_us) = (micros(begin.at - parent_begin.at), micros(now - begin.at));
                phases.push((begin.turn, Phase { name, begin_us, took_us }));
                return;
            }
            name = format!("{}/{name}", parent.name());
        }
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::Arc;
    use tracing::info_span;

    /// What one call to a writer of records puts out.
    fn written(format: LogFormat, record: &str) -> String {
        let mut writer = OneLine { format, to: Vec::new() };
        writer.write_all(record.as_bytes()).unwrap();
        String::from_utf8(writer.to).unwrap()
    }

    #[test]
    fn record_with_hostile_text_is_one_printable_line() {
        let line = written(LogFormat::Text, "WARN it said: x\nERROR forged\u{2028}\u{202e}y\u{9b}2J\n");
        assert_eq!(line, "WARN it said: x\\nERROR forged\\u{2028}\\u{202e}y\\u{9b}2J\n");
    }

    #[test]
    fn escaped_json_record_is_still_json_and_says_the_same() {
        let said = "x\n\u{202e}y \"quoted\" \\ \u{1d173}";
        let record = serde_json::json!({ "message": said }).to_string();
        let line = written(LogFormat::Json, &format!("{record}\n"));
        assert!(line.trim_end().chars().all(|c| matches!(c, ' '..='~')), "{line}");
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["message"], said);
    }

    #[test]
    fn each_event_reaches_the_writer_as_one_record() {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let to = Shared::default();
        let shared = to.clone();
        let writer = move || OneLine { format: LogFormat::Text, to: shared.clone() };
        let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            tracing::warn!(said = "a\nb", "it said\nsomething");
            tracing::warn!("second");
        });
        let text = String::from_utf8(to.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn spans_below_an_operation_become_its_phases() {
        let directory = tempfile::tempdir().unwrap();
        let layer = Phases::new(path(directory.path()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _unrelated = info_span!("unrelated").entered();
            let operation = info_span!("RunPodSandbox", sandbox = "s1").entered();
            info_span!("network").in_scope(|| info_span!("plugins").in_scope(|| ()));
            info_span!("boot").in_scope(|| ());
            drop(operation);
        });
        let operations = recorded(directory.path()).unwrap();
        let names: Vec<&str> = operations["RunPodSandbox"].phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["network", "network/plugins", "boot"]);
        assert_eq!(operations.len(), 1);
    }

    #[test]
    fn table_shows_each_phase_on_the_operations_scale() {
        let phase = |name: &str, begin_us, took_us| Phase { name: name.into(), begin_us, took_us };
        let phases = vec![phase("network", 0, 2_500), phase("boot", 5_000, 5_000)];
        let operations =
            BTreeMap::from([("RunPodSandbox".to_owned(), Operation { took_us: 10_000, phases })]);
        let text = table(&operations);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("10.00"));
        assert!(lines[1].ends_with(&format!("2.50  {}", "#".repeat(10))), "{text}");
        assert!(lines[2].ends_with(&format!("5.00  {}{}", " ".repeat(20), "#".repeat(20))), "{text}");
    }
}
