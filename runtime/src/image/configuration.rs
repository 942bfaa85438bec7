//! An image's configuration: the platform it is for, what its containers are unless the pod says otherwise, and the digests
//! of its uncompressed layers. OCI image specification 1.1, config.md; Docker's differs in nothing that is read here.
//!
//! Read by `describe`, by the service when it starts, and for each container anew; used by `container`, which
//! makes containers of it: of a description of bounded size, so that whoever built an image decides little
//! about what that costs.

use super::json::{self, JsonError, Names, Read, Reader};
use super::platform::Platform;

/// Most entries of one list: environment, entrypoint, command, volumes.
const MOST_ENTRIES: usize = 4096;

/// Longest entry of a list in bytes: what Linux's execve(2) takes of one argument (`MAX_ARG_STRLEN`), less its zero byte.
const LONGEST_ENTRY: usize = (128 << 10) - 1;

/// Longest path or name in bytes, as Linux bounds paths (`PATH_MAX`).
const LONGEST_NAME: usize = 4096;

/// Longest user in bytes: names of users and groups have 32 each at most, and lists of all images show it.
const LONGEST_USER: usize = 256;

/// Most bytes of all of it. Linux takes 2 MiB of arguments and environment with the usual limit of the stack.
const MOST_BYTES: usize = 1 << 20;

/// Why a configuration is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// It cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It holds more than any container has a use for.
    #[error("{part} {found}, more than {limit}: build the image with less")]
    TooMuch {
        /// Which part of it.
        part: &'static str,
        /// How much of what it has.
        found: String,
        /// How much it may have.
        limit: usize,
    },
}

/// What Isopod uses of a configuration. What the document leaves out is empty here, as is what is `null` in it; what is not
/// used is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfiguration {
    /// Processor architecture, in Go's words.
    pub architecture: String,
    /// Operating system, in Go's words.
    pub os: String,
    /// Level of the architecture that the programs need (`v3`).
    pub variant: String,
    /// User, or user and group, as `USER` of a Dockerfile has it.
    pub user: String,
    /// Environment, `NAME=value` unless its builder was careless.
    pub env: Vec<String>,
    /// Program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the whole command where there is none.
    pub cmd: Vec<String>,
    /// Directory in which the program starts.
    pub working_dir: String,
    /// Directories that are volumes.
    pub volumes: Names,
    /// Signal that asks the program to end, by name or number.
    pub stop_signal: String,
    /// Digests of the uncompressed layers, the lowest first; not checked for being digests.
    pub diff_ids: Vec<String>,
}

impl ImageConfiguration {
    /// Reads a document.
    ///
    /// # Errors
    /// What Go's `encoding/json` does not read into the specification's structs either; more than containers can have.
    pub fn parse(document: &[u8]) -> Result<Self, ConfigurationError> {
        let read: Self = json::read(document)?;
        read.check()?;
        Ok(read)
    }

    /// Checks the sizes of all that it holds.
    fn check(&self) -> Result<(), ConfigurationError> {
        let volumes: Vec<&str> = self.volumes.iter().map(String::as_str).collect();
        let lists = [
            ("config.Env has", refs(&self.env), LONGEST_ENTRY),
            ("config.Entrypoint has", refs(&self.entrypoint), LONGEST_ENTRY),
            ("config.Cmd has", refs(&self.cmd), LONGEST_ENTRY),
            ("config.Volumes has", volumes, LONGEST_NAME),
            ("rootfs.diff_ids has", refs(&self.diff_ids), LONGEST_NAME),
        ];
        let names = [
            ("architecture has", &self.architecture, LONGEST_NAME),
            ("os has", &self.os, LONGEST_NAME),
            ("variant has", &self.variant, LONGEST_NAME),
            ("config.User has", &self.user, LONGEST_USER),
            ("config.WorkingDir has", &self.working_dir, LONGEST_NAME),
            ("config.StopSignal has", &self.stop_signal, LONGEST_NAME),
        ];
        let too_much = |part, found: String, limit| Err(ConfigurationError::TooMuch { part, found, limit });
        let mut bytes = 0;
        for (part, entries, longest) in lists {
            if entries.len() > MOST_ENTRIES {
                return too_much(part, format!("{} entries", entries.len()), MOST_ENTRIES);
            }
            if let Some(entry) = entries.iter().find(|entry| entry.len() > longest) {
                return too_much(part, format!("an entry of {} bytes", entry.len()), longest);
            }
            bytes += entries.iter().map(|entry| entry.len()).sum::<usize>();
        }
        for (part, name, longest) in names {
            if name.len() > longest {
                return too_much(part, format!("{} bytes", name.len()), longest);
            }
            bytes += name.len();
        }
        match bytes > MOST_BYTES {
            true => too_much("its lists and names have", format!("{bytes} bytes together"), MOST_BYTES),
            false => Ok(()),
        }
    }

    /// The platform that it is for.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            os_features: Vec::new(),
        }
    }
}

fn refs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

impl Read for ImageConfiguration {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        from.fields(|from, name| match name {
            "architecture" => self.architecture.read(from),
            "os" => self.os.read(from),
            "variant" => self.variant.read(from),
            "config" => from.fields(|from, name| self.read_default(from, name)),
            "rootfs" => from.fields(|from, name| match name {
                "diff_ids" => self.diff_ids.read(from),
                _ => from.skip(),
            }),
            _ => from.skip(),
        })
    }
}

impl ImageConfiguration {
    /// Reads one field of `config`.
    fn read_default(&mut self, from: &mut Reader<'_>, name: &str) -> Result<(), JsonError> {
        match name {
            "user" => self.user.read(from),
            "env" => self.env.read(from),
            "entrypoint" => self.entrypoint.read(from),
            "cmd" => self.cmd.read(from),
            "workingdir" => self.working_dir.read(from),
            "volumes" => self.volumes.read(from),
            "stopsignal" => self.stop_signal.read(from),
            _ => from.skip(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(document: &str) -> ImageConfiguration {
        ImageConfiguration::parse(document.as_bytes()).unwrap_or_else(|error| panic!("{document}: {error}"))
    }

    #[test]
    fn volumes_that_are_written_again_and_again_take_linear_time() {
        let names: String = (0..40_000).map(|name| format!("\"{name}\": {{}},")).collect();
        let again = r#""Volumes": {},"#.repeat(40_000);
        let document = format!(r#"{{"config": {{"Volumes": {{{names} "x": {{}}}}, {again} "User": "u"}}}}"#);
        let begun = std::time::Instant::now();
        let read: ImageConfiguration = json::read(document.as_bytes()).unwrap();
        assert_eq!(read.volumes.len(), 40_001);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "quadratic");
    }

    #[test]
    fn whole_configuration_is_read() {
        let document = r#"{"created": "2026-01-01T00:00:00Z", "architecture": "amd64", "os": "linux", "variant": "v2",
            "config": {"User": "1000:1001", "Env": ["PATH=/bin", "A=b=c"], "Entrypoint": ["/entry"], "Cmd": ["a"],
                "WorkingDir": "/work", "Volumes": {"/b": {}, "/a": {}}, "StopSignal": "SIGINT",
                "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}, "Healthcheck": {"Test": ["CMD"]}},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:0", "sha256:1"]}, "history": [{"empty_layer": true}]}"#;
        let strings = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let expected = ImageConfiguration {
            architecture: "amd64".into(),
            os: "linux".into(),
            variant: "v2".into(),
            user: "1000:1001".into(),
            env: strings(&["PATH=/bin", "A=b=c"]),
            entrypoint: strings(&["/entry"]),
            cmd: strings(&["a"]),
            working_dir: "/work".into(),
            volumes: strings(&["/b", "/a"]).into_iter().collect(),
            stop_signal: "SIGINT".into(),
            diff_ids: strings(&["sha256:0", "sha256:1"]),
        };
        assert_eq!(parse(document), expected);
    }

    #[test]
    fn null_and_missing_are_empty() {
        let nulls = r#"{"architecture": null, "os": null, "config": {"User": null, "Env": null, "Cmd": null,
            "Volumes": null, "StopSignal": null}, "rootfs": {"diff_ids": null}, "history": null}"#;
        for document in [nulls, "null", "{}", r#"{"config": null, "rootfs": null}"#] {
            assert_eq!(parse(document), ImageConfiguration::default(), "{document}");
        }
    }

    #[test]
    fn values_of_other_types_are_refused_with_the_field() {
        let cases = [
            (
                r#"{"config": {"Entrypoint": "/bin/sh"}}"#,
                "config.Entrypoint is a string where a list belongs",
            ),
            (r#"{"config": {"Env": {"A": "b"}}}"#, "config.Env is an object where a list belongs"),
            (r#"{"config": {"Cmd": ["a", 1]}}"#, "config.Cmd is a number where a string belongs"),
            (r#"{"config": {"User": 1000}}"#, "config.User is a number where a string belongs"),
            (r#"{"config": {"Volumes": ["/a"]}}"#, "config.Volumes is a list where an object belongs"),
            (
                r#"{"config": {"Volumes": {"/a": true}}}"#,
                "config.Volumes is a boolean where an object belongs",
            ),
            (r#"{"config": []}"#, "config is a list where an object belongs"),
            (r#"["amd64"]"#, "the document is a list where an object belongs"),
        ];
        for (document, told) in cases {
            assert_eq!(ImageConfiguration::parse(document.as_bytes()).unwrap_err().to_string(), told);
        }
    }

    fn refused(config: serde_json::Value) -> String {
        let document = serde_json::json!({"os": "linux", "config": config}).to_string();
        ImageConfiguration::parse(document.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn configuration_that_would_take_long_to_make_a_container_of_is_refused() {
        let many = vec!["A=b"; 4097];
        for field in ["Env", "Entrypoint", "Cmd"] {
            let told = refused(serde_json::json!({ field: many }));
            let expected =
                format!("config.{field} has 4097 entries, more than 4096: build the image with less");
            assert_eq!(told, expected);
        }
        let volumes: serde_json::Map<_, _> =
            (0..4097).map(|number| (format!("/{number}"), serde_json::json!({}))).collect();
        assert!(
            refused(serde_json::json!({"Volumes": volumes})).starts_with("config.Volumes has 4097 entries")
        );
        let long = "x".repeat(128 << 10);
        let told = refused(serde_json::json!({"Cmd": [long]}));
        assert!(told.starts_with("config.Cmd has an entry of 131072 bytes, more than 131071"), "{told}");
        let told = refused(serde_json::json!({"Env": vec![&long[1..]; 9]}));
        assert!(told.starts_with("its lists and names have 1179644 bytes together"), "{told}");
        for (field, longest) in [("User", 256), ("WorkingDir", 4096), ("StopSignal", 4096)] {
            let told = refused(serde_json::json!({ field: "x".repeat(longest + 1) }));
            let expected = format!("config.{field} has {} bytes, more than {longest}", longest + 1);
            assert!(told.starts_with(&expected), "{told}");
        }
    }

    #[test]
    fn all_that_containers_can_have_is_read() {
        let entry = "x".repeat((128 << 10) - 1);
        let document = serde_json::json!({"config": {"Env": vec!["A=b"; 4096], "Cmd": vec![entry; 7],
            "User": "u".repeat(256)}});
        assert_eq!(parse(&document.to_string()).cmd.len(), 7);
    }

    fn any_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            ".{0,20}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(3, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..6)
                    .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_values_of_the_fields_are_read_within_bounds_or_refused(
            config in prop::collection::btree_map(
                prop_oneof![
                    Just("User"), Just("Env"), Just("Entrypoint"), Just("Cmd"), Just("Volumes"), Just("Labels"),
                    Just("WorkingDir"), Just("StopSignal"), Just("ENV"), Just("volumes")
                ],
                any_value(),
                0..6
            ),
            diff_ids in any_value(),
        ) {
            let document = serde_json::json!({"config": config, "rootfs": {"diff_ids": diff_ids}}).to_string();
            if let Ok(read) = ImageConfiguration::parse(document.as_bytes()) {
                prop_assert!(read.check().is_ok());
                let held = read.env.iter().chain(&read.cmd).chain(&read.entrypoint).chain(&read.volumes);
                prop_assert!(held.map(String::len).sum::<usize>() <= document.len());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = ImageConfiguration::parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read(user in ".{0,60}", env: Vec<String>, volumes: std::collections::BTreeSet<String>) {
            let map: serde_json::Map<_, _> =
                volumes.iter().map(|name| (name.clone(), serde_json::json!({}))).collect();
            let document = serde_json::json!({"config": {"User": user, "Env": env, "Volumes": map}}).to_string();
            let read = parse(&document);
            prop_assert_eq!(read.user, user);
            prop_assert_eq!(read.env, env);
            prop_assert_eq!(read.volumes, volumes);
        }
    }
}
