//! An image's configuration: the platform it is for, what its containers are unless the pod says otherwise, and the digests
//! of its uncompressed layers. OCI image specification 1.1, config.md; Docker's differs in nothing that is read here.
//!
//! Read by `describe` and by the service when it starts; used by `container`, which makes containers of it.

use super::json::{self, JsonError, Names, Read, Reader};
use super::platform::Platform;

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
    /// What Go's `encoding/json` does not read into the specification's structs either.
    pub fn parse(document: &[u8]) -> Result<Self, JsonError> {
        json::read(document)
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
        assert_eq!(parse(&document).volumes.len(), 40_001);
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

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = ImageConfiguration::parse(&bytes);
        }

        #[test]
        fn what_is_written_is_read(user: String, env: Vec<String>, volumes: std::collections::BTreeSet<String>) {
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
