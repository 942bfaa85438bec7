//! The daemon's configuration: one TOML file, and a directory of drop-ins beside it (`FILE.d/*.toml`, by name; a later
//! file wins key by key). A key that is not known is refused, with its file and place.
//!
//! Read once at the start. It must not look at the machine: whether files are there is `check`'s question.

mod sections;

pub use sections::{
    CniConfig, Config, DaemonConfig, HandlerConfig, ImageConfig, LogFormat, NAMESPACE_SCOPE, RegistryConfig,
    TemplateScope, VmConfig,
};

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or the drop-in directory cannot be read.
    #[error("configuration {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no TOML, has an unknown key, or a value of the wrong type.
    #[error("configuration {path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, column, key and what is wrong.
        reason: String,
    },
    /// A value is of the right type and cannot work.
    #[error("configuration: {key} {reason}")]
    Unusable {
        /// The key, with its section.
        key: String,
        /// What is wrong and what would do.
        reason: String,
    },
}

impl Config {
    /// Reads `file` and its drop-ins.
    ///
    /// # Errors
    /// The first file that cannot be used; a value that cannot work.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let mut merged = read(file)?;
        for path in drop_ins(file)? {
            merge(&mut merged, read(&path)?);
        }
        let config = parse(file, &merged.to_string())?;
        config.validate()?;
        Ok(config)
    }

    /// The settings of the VMs of a runtime handler; `None` where there is no such handler. The default handler has two
    /// names: the empty one and `isopod`.
    pub fn vm_of(&self, handler: &str) -> Option<VmConfig> {
        match (self.handlers.get(handler), handler) {
            (Some(overrides), _) => Some(overrides.apply(&self.vm)),
            (None, "" | "isopod") => Some(self.vm.clone()),
            (None, _) => None,
        }
    }

    /// Names of all runtime handlers, the empty one first.
    pub fn handler_names(&self) -> Vec<&str> {
        let mut names = vec!["", "isopod"];
        names.extend(self.handlers.keys().map(String::as_str).filter(|name| !matches!(*name, "" | "isopod")));
        names
    }

    fn validate(&self) -> Result<(), ConfigError> {
        for name in self.handler_names() {
            let section =
                if self.handlers.contains_key(name) { format!("handlers.{name}") } else { "vm".to_owned() };
            let vm = self.vm_of(name).expect("every listed handler has settings");
            vm.validate().map_err(|(key, reason)| ConfigError::Unusable {
                key: format!("{section}.{key}"),
                reason: reason.to_owned(),
            })?;
        }
        for (section, checked) in [("daemon", self.daemon.validate()), ("image", self.image.validate())] {
            checked.map_err(|(key, reason)| ConfigError::Unusable {
                key: format!("{section}.{key}"),
                reason: reason.to_owned(),
            })?;
        }
        Ok(())
    }
}

/// One file as a table. Reading it as a whole [`Config`] first finds unknown keys while their file and line are known.
fn read(path: &Path) -> Result<Table, ConfigError> {
    let failed = |source| ConfigError::Io { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    parse(path, &text)?;
    text.parse().map_err(|error: toml::de::Error| invalid(path, &error))
}

fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    toml::from_str(text).map_err(|error| invalid(path, &error))
}

fn invalid(path: &Path, error: &toml::de::Error) -> ConfigError {
    ConfigError::Invalid { path: path.to_owned(), reason: error.to_string().trim_end().to_owned() }
}

fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut name = file.as_os_str().to_owned();
    name.push(".d");
    let directory = PathBuf::from(name);
    let failed = |source| ConfigError::Io { path: directory.clone(), source };
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Lays `later` over `base`: tables key by key, everything else as a whole.
fn merge(base: &mut Table, later: Table) {
    for (key, value) in later {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("config.toml.d")).unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        Config::load(&directory.path().join("config.toml"))
    }

    #[test]
    fn empty_file_gives_the_defaults() {
        assert_eq!(load(&[("config.toml", "")]).unwrap(), Config::default());
    }

    #[test]
    fn later_drop_in_wins_key_by_key() {
        let config = load(&[
            ("config.toml", "[vm]\nvcpus = 2\nmemory_mib = 512\n"),
            ("config.toml.d/20-b.toml", "[vm]\nmemory_mib = 1024\n"),
            ("config.toml.d/10-a.toml", "[vm]\nmemory_mib = 768\n[daemon]\nsocket = '/x.sock'\n"),
            ("config.toml.d/ignored.conf", "not toml"),
        ])
        .unwrap();
        assert_eq!((config.vm.vcpus, config.vm.memory_mib), (2, 1024));
        assert_eq!(config.daemon.socket, Path::new("/x.sock"));
    }

    #[test]
    fn unknown_key_is_refused_with_file_and_place() {
        let error = load(&[("config.toml", ""), ("config.toml.d/a.toml", "[vm]\nvcpu = 1\n")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("config.toml.d/a.toml"), "{error}");
        assert!(error.contains("vcpu") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn handler_overrides_only_what_it_names() {
        let config = load(&[(
            "config.toml",
            "[vm]\nvcpus = 2\n[handlers.isopod-large]\nmemory_mib = 4096\ntemplate = 'off'\n[handlers.isopod]\nvcpus = 3\n",
        )])
        .unwrap();
        let large = config.vm_of("isopod-large").unwrap();
        assert_eq!((large.vcpus, large.memory_mib, large.template), (2, 4096, TemplateScope::Off));
        assert_eq!(config.vm_of("isopod").unwrap().vcpus, 3);
        assert_eq!(config.vm_of("").unwrap().vcpus, 2);
        assert_eq!(config.vm_of("runc"), None);
        assert_eq!(config.handler_names(), ["", "isopod", "isopod-large"]);
    }

    #[test]
    fn only_the_handler_that_asks_for_it_nests() {
        let config =
            load(&[("config.toml", "[handlers.isopod-kvm]\nnested_virtualization = true\n")]).unwrap();
        assert!(config.vm_of("isopod-kvm").unwrap().nested_virtualization);
        assert!(!config.vm_of("").unwrap().nested_virtualization);
    }

    #[test]
    fn scope_of_templates_is_named_by_who_shares_them() {
        use TemplateScope::{Namespace, Node, Off};
        let name = |scope: TemplateScope| scope.scope(Some("shop"));
        assert_eq!([Node, Namespace, Off].map(name), [Some(String::new()), Some("ns:shop".into()), None]);
        assert_eq!(Namespace.scope(None), None);
    }

    #[test]
    fn last_user_id_is_kept_from_pods() {
        let config = load(&[("config.toml", "[vm]\nfirst_uid = 100\nuid_count = 3\n")]).unwrap();
        assert_eq!((config.vm.pod_uids(), config.vm.template_uid()), (100..102, 102));
        let error = load(&[("config.toml", "[vm]\nuid_count = 1\n")]).unwrap_err().to_string();
        assert!(error.contains("vm.uid_count"), "{error}");
    }

    #[test]
    fn directories_of_the_system_are_refused_as_the_daemons_own() {
        for text in
            ["state_dir = '/run/'", "root_dir = '/var/./lib'", "root_dir = 'isopod'", "state_dir = '/'"]
        {
            let error = load(&[("config.toml", &format!("[daemon]\n{text}\n"))]).unwrap_err().to_string();
            assert!(error.contains("daemon.") && error.contains("of isopod's own"), "{error}");
        }
    }

    #[test]
    fn value_that_cannot_work_is_named() {
        let error = load(&[("config.toml", "[handlers.tiny]\nmemory_mib = 16\n")]).unwrap_err().to_string();
        assert!(error.contains("handlers.tiny.memory_mib"), "{error}");
    }

    #[test]
    fn example_file_is_complete_and_states_the_defaults() {
        let text = include_str!("../../isopod.example.toml");
        let example: Config = toml::from_str(text).unwrap();
        assert_eq!(example, Config::default());
        let stated: Table = text.parse().unwrap();
        let all = Table::try_from(Config::default()).unwrap();
        for (section, keys) in &all {
            for key in keys.as_table().unwrap().keys() {
                assert!(stated[section].get(key).is_some(), "{section}.{key} is missing in the example");
            }
        }
    }
}
