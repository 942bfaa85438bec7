//! CNI network configurations: the files of the configuration directory, read anew for each use so that an operator's
//! change counts at once.
//!
//! Called by `network`. It must not run plugins.
//!
//! Source: CNI specification 1.1.0, section 1.

use serde_json::{Map, Value};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Newest version of the specification that this runtime speaks.
const NEWEST: &str = "1.1.0";

/// Why no network can be had from the configuration directory.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// The directory or a file in it cannot be read.
    #[error("CNI configuration {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no configuration at all.
    #[error("no CNI configuration in {0}: put a .conflist file there, as CNI network add-ons do")]
    None(PathBuf),
    /// The network asked for is not among those that are there.
    #[error("no CNI network named {name:?} in {directory}: found {found:?}")]
    NoSuchNetwork {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
        /// The names that are there.
        found: Vec<String>,
    },
    /// The file is not a network configuration.
    #[error("CNI configuration {path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A network: a name and the plugins to call in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflist {
    /// Name of the network.
    pub name: String,
    /// Version of the specification its plugins are called with.
    pub cni_version: String,
    /// The plugins' own configurations, each with a `type`.
    pub plugins: Vec<Map<String, Value>>,
    /// The document as it was read, kept for the teardown.
    pub document: Value,
}

impl Conflist {
    /// The network `name`, or without a name the first by file name, of `directory`. A broken file is passed over only
    /// where a later one answers the question.
    ///
    /// # Errors
    /// The first broken file, where no whole one answers; else that there is none.
    pub fn find(directory: &Path, name: Option<&str>) -> Result<Self, ConflistError> {
        let (mut found, mut broken) = (Vec::new(), None);
        for path in files(directory)? {
            match Self::read(&path) {
                Ok(list) if name.is_none_or(|wanted| list.name == wanted) => return Ok(list),
                Ok(list) => found.push(list.name),
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        match (broken, name) {
            (Some(error), _) => Err(error),
            (None, Some(name)) => Err(ConflistError::NoSuchNetwork {
                name: name.to_owned(),
                directory: directory.to_owned(),
                found,
            }),
            (None, None) => Err(ConflistError::None(directory.to_owned())),
        }
    }

    fn read(path: &Path) -> Result<Self, ConflistError> {
        let invalid = |reason: String| ConflistError::Invalid { path: path.to_owned(), reason };
        let text =
            fs::read_to_string(path).map_err(|source| ConflistError::Io { path: path.to_owned(), source })?;
        let document = serde_json::from_str(&text).map_err(|e| invalid(format!("not JSON: {e}")))?;
        Self::parse(document).map_err(invalid)
    }

    /// Reads a document: a list of plugins, or one plugin alone (the old `.conf` form).
    ///
    /// # Errors
    /// A phrase that says what is missing or wrong.
    pub fn parse(document: Value) -> Result<Self, String> {
        let text = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
        let name = text("name").filter(|n| !n.is_empty()).ok_or("it has no \"name\"")?;
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Err(format!("its name {name:?} may hold only letters, digits, '-', '_' and '.'"));
        }
        let cni_version = text("cniVersion").unwrap_or_else(|| "0.2.0".to_owned());
        if version(&cni_version) > version(NEWEST) || version(&cni_version).is_none() {
            return Err(format!("it wants cniVersion {cni_version:?}; up to {NEWEST} is spoken here"));
        }
        let listed = match document.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err("its \"plugins\" is not a list".to_owned()),
            None => vec![document.clone()],
        };
        let plugins = listed
            .into_iter()
            .map(|plugin| match plugin {
                Value::Object(map) if map.get("type").is_some_and(Value::is_string) => Ok(map),
                _ => Err("one of its plugins has no \"type\""),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if plugins.is_empty() {
            return Err("it lists no plugin".to_owned());
        }
        Ok(Self { name, cni_version, plugins, document })
    }
}

/// The numbers of a version, for comparing.
fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

/// The configuration files of a directory, by name. A directory that is missing holds none.
fn files(directory: &Path) -> Result<Vec<PathBuf>, ConflistError> {
    let failed = |source| ConflistError::Io { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    const A: &str = r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}"#;
    const B: &str = r#"{"cniVersion":"0.4.0","name":"b","type":"ptp"}"#;

    #[test]
    fn first_file_by_name_is_the_default_network() {
        let d = directory(&[("20-b.conf", B), ("10-a.conflist", A), ("00-note.txt", "x")]);
        assert_eq!(Conflist::find(d.path(), None).unwrap().name, "a");
        assert_eq!(Conflist::find(d.path(), Some("b")).unwrap().plugins.len(), 1);
    }

    #[test]
    fn empty_or_missing_directory_says_what_to_do() {
        let d = directory(&[]);
        let message = Conflist::find(d.path(), None).unwrap_err().to_string();
        assert!(message.contains("put a .conflist file there"), "{message}");
        assert!(matches!(Conflist::find(&d.path().join("gone"), None), Err(ConflistError::None(_))));
    }

    #[test]
    fn unknown_network_names_those_that_are_there() {
        let d = directory(&[("10-a.conflist", A)]);
        let message = Conflist::find(d.path(), Some("c")).unwrap_err().to_string();
        assert!(message.contains("\"c\"") && message.contains("\"a\""), "{message}");
    }

    #[test]
    fn broken_file_is_named_unless_another_one_answers() {
        let d = directory(&[("05-broken.conflist", "{"), ("10-a.conflist", A)]);
        assert_eq!(Conflist::find(d.path(), None).unwrap().name, "a");
        let message = Conflist::find(d.path(), Some("c")).unwrap_err().to_string();
        assert!(message.contains("05-broken.conflist"), "{message}");
    }

    #[test]
    fn newer_specification_and_missing_parts_are_refused() {
        for document in [
            json!({"cniVersion": "2.0.0", "name": "n", "plugins": [{"type": "x"}]}),
            json!({"cniVersion": "one", "name": "n", "plugins": [{"type": "x"}]}),
            json!({"cniVersion": "1.0.0", "plugins": [{"type": "x"}]}),
            json!({"cniVersion": "1.0.0", "name": "../n", "plugins": [{"type": "x"}]}),
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": []}),
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}),
        ] {
            assert!(Conflist::parse(document.clone()).is_err(), "{document}");
        }
    }

    /// Documents that have the fields of a list, each of any kind.
    fn any_list() -> impl Strategy<Value = Value> {
        let any = || {
            prop_oneof![
                Just(Value::Null),
                Just(json!(-1)),
                Just(json!([])),
                Just(json!({})),
                "[a-z./\n]{0,6}".prop_map(Value::from),
                Just(json!("1.1.0")),
                Just(json!("0.3.1")),
                Just(json!([{ "type": "bridge" }, { "type": "portmap" }])),
                Just(json!([{ "type": "bridge" }, { "type": 5 }])),
            ]
        };
        let field =
            prop_oneof![Just("name"), Just("cniVersion"), Just("plugins"), Just("type"), Just("other")];
        proptest::collection::hash_map(field, any(), 0..5).prop_map(|fields| {
            Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
        })
    }

    proptest! {
        #[test]
        fn any_document_is_a_list_with_plugins_or_refused(document in any_list()) {
            if let Ok(list) = Conflist::parse(document) {
                prop_assert!(!list.name.is_empty() && !list.name.contains(['/', '\n']));
                prop_assert!(!list.plugins.is_empty());
                prop_assert!(list.plugins.iter().all(|plugin| plugin["type"].is_string()));
                prop_assert_eq!(Conflist::parse(list.document.clone()), Ok(list));
            }
        }

        #[test]
        fn any_version_is_compared_or_refused(version in "[0-9.]{0,12}") {
            let document = json!({ "cniVersion": version, "name": "n", "type": "x" });
            if let Ok(list) = Conflist::parse(document) {
                prop_assert!(super::version(&list.cni_version) <= super::version(NEWEST));
            }
        }
    }
}
