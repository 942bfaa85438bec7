//! A seccomp profile of the node (`Localhost`), read as containerd reads it: by Go's `encoding/json` into the
//! structs of the OCI runtime specification. Absent numbers are 0, absent and null lists are empty, names
//! match in any case, unknown fields are ignored.
//!
//! Called by `security`. It must not decide which profile a container has.

use super::ContainerConfigError;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// Largest profile that is read, bytes.
const MAX_PROFILE: u64 = 1024 * 1024;

/// The fields of a profile and of what is in it. The list is one for all of them, as no two differ in case
/// alone.
const FIELDS: [&str; 15] = [
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "flags",
    "listenerPath",
    "listenerMetadata",
    "syscalls",
    "names",
    "action",
    "errnoRet",
    "args",
    "index",
    "value",
    "valueTwo",
    "op",
];

/// Reads the profile at `path`.
///
/// # Errors
/// Where it cannot be read, is no profile, or needs a listener, which a guest's kernel cannot have on the
/// node.
pub fn read(path: &Path) -> Result<LinuxSeccomp, ContainerConfigError> {
    let invalid = |reason: String| ContainerConfigError::Invalid {
        field: "seccomp.localhost_ref",
        reason: format!("profile {}: {reason}", path.display()),
    };
    if !path.is_absolute() {
        return Err(invalid("the path is not absolute".to_owned()));
    }
    let length = fs::metadata(path).map_err(|e| invalid(e.to_string()))?.len();
    if length > MAX_PROFILE {
        return Err(invalid(format!("{length} bytes, more than {MAX_PROFILE}")));
    }
    let text = fs::read(path).map_err(|e| invalid(e.to_string()))?;
    let profile = parse(&text).map_err(|e| invalid(e.to_string()))?;
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().iter().flatten();
    if notifies(profile.default_action()) || rules.into_iter().any(|rule| notifies(rule.action())) {
        let reason = "SCMP_ACT_NOTIFY needs a listener, and one of the node cannot serve a guest's kernel: use another action";
        return Err(invalid(reason.to_owned()));
    }
    if profile.listener_path().is_some() {
        let reason =
            "listenerPath names a socket of the node, which the guest's kernel cannot reach: remove it";
        return Err(invalid(reason.to_owned()));
    }
    Ok(profile)
}

fn parse(text: &[u8]) -> Result<LinuxSeccomp, serde_json::Error> {
    let mut profile: Value = serde_json::from_slice(text)?;
    if let Value::Object(fields) = &mut profile {
        complete(fields, &[]);
        for rule in objects(fields, "syscalls") {
            complete(rule, &[("names", Value::Array(Vec::new()))]);
            for argument in objects(rule, "args") {
                complete(argument, &[("index", 0.into()), ("value", 0.into())]);
            }
        }
        // A rule for no call has no effect, and the library takes none.
        if let Some(Value::Array(rules)) = fields.get_mut("syscalls") {
            rules.retain(|rule| rule["names"].as_array().is_none_or(|names| !names.is_empty()));
        }
    }
    serde_json::from_value(profile)
}

/// Gives fields their names as the specification writes them, leaves out what is null or unknown, and adds
/// defaults.
fn complete(fields: &mut Map<String, Value>, defaults: &[(&str, Value)]) {
    let known = |name: &str| FIELDS.into_iter().find(|field| field.eq_ignore_ascii_case(name));
    *fields = std::mem::take(fields)
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .filter_map(|(name, value)| Some((known(&name)?.to_owned(), value)))
        .collect();
    for (name, default) in defaults {
        fields.entry(*name).or_insert_with(|| default.clone());
    }
}

/// The objects in a list of `fields`.
fn objects<'a>(
    fields: &'a mut Map<String, Value>,
    list: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let items = fields.get_mut(list).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_go_leaves_out_or_writes_otherwise_is_read() {
        let text =
            br#"{"DefaultAction": "SCMP_ACT_ERRNO", "architectures": null, "comment": "x", "archMap": [{}],
            "syscalls": [{"names": null, "action": "SCMP_ACT_ALLOW"}, {"action": "SCMP_ACT_ALLOW"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"op": "SCMP_CMP_EQ"},
                    {"index": 2, "op": "SCMP_CMP_EQ", "valueTwo": null}], "includes": {}}]}"#;
        let profile = parse(text).unwrap();
        let rules = profile.syscalls().as_ref().unwrap();
        assert_eq!(rules.len(), 1);
        let arguments = rules[0].args().as_ref().unwrap();
        let numbers: Vec<_> = arguments.iter().map(|argument| (argument.index(), argument.value())).collect();
        assert_eq!(numbers, [(0, 0), (2, 0)]);
    }

    #[test]
    fn what_runc_refuses_is_refused() {
        for text in [
            r#"{"syscalls": []}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"]}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_KILL", "args": [{}]}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}"#,
            "[]",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
