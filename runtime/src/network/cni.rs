//! The runtime's side of CNI: calls the plugins of a network in order for ADD and CHECK, in reverse for DEL, and reads
//! what they answer.
//!
//! Called by `network`. It must not keep state: what a teardown needs, the caller keeps.
//!
//! Source: CNI specification 1.1.0, sections 2 to 5.

use super::conflist::Conflist;
use crate::hostile_text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Name that plugins give the pod's interface.
pub const INTERFACE: &str = "eth0";

/// Most bytes taken from a plugin's answer.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Why a plugin call failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The plugin's program is in none of the directories.
    #[error("CNI plugin {plugin:?} of network {network:?} is in none of {directories:?}: install it there")]
    Missing {
        /// The network that names it.
        network: String,
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        directories: Vec<PathBuf>,
    },
    /// The program could not be run.
    #[error("CNI plugin {path}: {source}")]
    Io {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program ran and refused.
    #[error("CNI plugin {plugin:?} refused {command} (code {code}): {message}")]
    Refused {
        /// Its type.
        plugin: String,
        /// ADD, CHECK, DEL or STATUS.
        command: &'static str,
        /// The specification's error code.
        code: u64,
        /// Its own words.
        message: String,
    },
    /// The program took too long and was killed.
    #[error("CNI plugin {plugin:?} did not answer {command} within {seconds} s")]
    Timeout {
        /// Its type.
        plugin: String,
        /// ADD, CHECK, DEL or STATUS.
        command: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The answer is not a result.
    #[error("CNI plugin {plugin:?} answered {command} with something that is no result: {reason}")]
    BadResult {
        /// Its type.
        plugin: String,
        /// ADD, CHECK, DEL or STATUS.
        command: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Where and for whom plugins run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invocation {
    /// `CNI_CONTAINERID`: the sandbox's id.
    pub sandbox_id: String,
    /// `CNI_NETNS`: the sandbox's network namespace.
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    pub args: String,
    /// What goes into `runtimeConfig` of plugins that declare the capability.
    pub capabilities: Map<String, Value>,
}

/// Calls plugins from a list of directories.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// Directories with plugin programs, in order of preference.
    pub directories: Vec<PathBuf>,
    /// Time limit of one call.
    pub timeout: Duration,
}

impl Plugins {
    /// ADD through the whole list; each plugin sees its predecessor's result. The answer is the last one's.
    ///
    /// # Errors
    /// The first plugin that fails. What the ones before it took is for [`Plugins::del`] to release.
    pub async fn add(&self, list: &Conflist, invocation: &Invocation) -> Result<Value, CniError> {
        let mut previous = None;
        for plugin in &list.plugins {
            previous = Some(self.call("ADD", list, plugin, invocation, previous.as_ref()).await?);
        }
        Ok(previous.unwrap_or(Value::Null))
    }

    /// CHECK through the whole list (from version 0.4.0 on; older lists have none).
    ///
    /// # Errors
    /// The first plugin that finds the network not as its ADD left it.
    pub async fn check(&self, list: &Conflist, at: &Invocation, result: &Value) -> Result<(), CniError> {
        let disabled = list.document.get("disableCheck").and_then(Value::as_bool) == Some(true);
        if disabled || matches!(list.cni_version.as_str(), "0.1.0" | "0.2.0" | "0.3.0" | "0.3.1") {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.call("CHECK", list, plugin, at, Some(result)).await?;
        }
        Ok(())
    }

    /// DEL through the list in reverse. Plugins succeed where there is nothing to release.
    ///
    /// # Errors
    /// The first failure, after every plugin was called.
    pub async fn del(
        &self,
        list: &Conflist,
        at: &Invocation,
        result: Option<&Value>,
    ) -> Result<(), CniError> {
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            if let Err(error) = self.call("DEL", list, plugin, at, result).await
                && outcome.is_ok()
            {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// Whether every plugin's program is there.
    ///
    /// # Errors
    /// [`CniError::Missing`] for the first that is not.
    pub fn present(&self, list: &Conflist) -> Result<(), CniError> {
        list.plugins.iter().try_for_each(|plugin| self.find(list, plugin).map(|_| ()))
    }

    fn find(&self, list: &Conflist, plugin: &Map<String, Value>) -> Result<(String, PathBuf), CniError> {
        let name = plugin.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let plain = !name.is_empty() && !name.contains('/') && name != "..";
        let found = self.directories.iter().map(|d| d.join(&name)).find(|path| plain && path.is_file());
        match found {
            Some(path) => Ok((name, path)),
            None => Err(CniError::Missing {
                network: list.name.clone(),
                plugin: name,
                directories: self.directories.clone(),
            }),
        }
    }

    async fn call(
        &self,
        command: &'static str,
        list: &Conflist,
        plugin: &Map<String, Value>,
        at: &Invocation,
        previous: Option<&Value>,
    ) -> Result<Value, CniError> {
        let (name, path) = self.find(list, plugin)?;
        let failed = |source| CniError::Io { path: path.clone(), source };
        let child = self.spawn(command, &path, at).map_err(failed)?;
        let input = stdin_of(list, plugin, at, previous).to_string();
        let answer = tokio::time::timeout(self.timeout, converse(child, input.as_bytes())).await;
        let (success, output) = match answer {
            Ok(done) => done.map_err(failed)?,
            Err(_) => {
                return Err(CniError::Timeout { plugin: name, command, seconds: self.timeout.as_secs() });
            }
        };
        if !success {
            return Err(refusal(name, command, &output));
        }
        if command != "ADD" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output).map_err(|e| CniError::BadResult {
            plugin: name,
            command,
            reason: e.to_string(),
        })
    }

    fn spawn(&self, command: &str, path: &Path, at: &Invocation) -> io::Result<Child> {
        let search = std::env::join_paths(&self.directories).map_err(io::Error::other)?;
        Command::new(path)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &at.sandbox_id)
            .env("CNI_NETNS", &at.netns)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", &at.args)
            .env("CNI_PATH", search)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Gives a plugin its input and takes its answer: whether it exited with 0, and what it printed.
async fn converse(mut child: Child, input: &[u8]) -> io::Result<(bool, Vec<u8>)> {
    let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    // A plugin that never reads its input and exits is not an error of the pipe: its answer says what is wrong.
    match stdin.write_all(input).await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => drop(stdin),
    }
    let mut output = Vec::new();
    stdout.take(MAX_ANSWER).read_to_end(&mut output).await?;
    Ok((child.wait().await?.success(), output))
}

/// A plugin's configuration as it reads it: its own keys, the list's name and version, and what this call adds.
fn stdin_of(
    list: &Conflist,
    plugin: &Map<String, Value>,
    at: &Invocation,
    previous: Option<&Value>,
) -> Value {
    let mut input = plugin.clone();
    input.insert("name".into(), json!(list.name));
    input.insert("cniVersion".into(), json!(list.cni_version));
    if let Some(Value::Object(declared)) = input.remove("capabilities") {
        let wanted = |key: &str| declared.get(key).and_then(Value::as_bool) == Some(true);
        let granted: Map<_, _> =
            at.capabilities.iter().filter(|(k, _)| wanted(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
        if !granted.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(granted));
        }
    }
    if let Some(result) = previous {
        input.insert("prevResult".into(), result.clone());
    }
    Value::Object(input)
}

/// The error a failing plugin printed, or the fact that it printed none.
fn refusal(plugin: String, command: &'static str, output: &[u8]) -> CniError {
    let printed: Value = serde_json::from_slice(output).unwrap_or(Value::Null);
    let word = |key: &str| printed.get(key).and_then(Value::as_str).unwrap_or_default();
    let message = match (word("msg"), word("details")) {
        ("", "") => format!("it printed {:?}", String::from_utf8_lossy(&output[..output.len().min(300)])),
        (message, "") => message.to_owned(),
        (message, details) => format!("{message}: {details}"),
    };
    CniError::Refused {
        plugin,
        command,
        code: printed.get("code").and_then(Value::as_u64).unwrap_or(0),
        // It may quote what pods and other machines said to it.
        message: hostile_text::message(&message),
    }
}

/// The pod's addresses in a result: those of the pod's interface, IPv4 first, without prefix lengths.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let of_pod = |ip: &Value| match (ip.get("interface").and_then(Value::as_u64), interfaces) {
        (Some(index), Some(list)) => usize::try_from(index)
            .ok()
            .and_then(|i| list.get(i))
            .is_none_or(|interface| interface.get("name").and_then(Value::as_str) == Some(INTERFACE)),
        _ => true,
    };
    let ips = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut found: Vec<IpAddr> = ips
        .iter()
        .filter(|ip| of_pod(ip))
        .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn invocation() -> Invocation {
        Invocation {
            sandbox_id: "s1".into(),
            netns: "/run/netns/x".into(),
            args: "IgnoreUnknown=1".into(),
            capabilities: json!({"portMappings": [{"hostPort": 1}]}).as_object().cloned().unwrap(),
        }
    }

    /// A directory of plugins, each a shell script.
    fn plugins(scripts: &[(&str, &str)]) -> (tempfile::TempDir, Plugins) {
        let directory = tempfile::tempdir().unwrap();
        for (name, body) in scripts {
            let path = directory.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let plugins =
            Plugins { directories: vec![directory.path().into()], timeout: Duration::from_secs(10) };
        (directory, plugins)
    }

    fn list(plugins: Value) -> Conflist {
        Conflist::parse(json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins})).unwrap()
    }

    #[tokio::test]
    async fn each_plugin_sees_its_predecessors_result() {
        let echo = r#"cat > "$(dirname "$0")/seen"; echo '{"ips":[{"address":"10.0.0.9/24"}]}'"#;
        let (directory, plugins) =
            plugins(&[("first", "cat >/dev/null; echo '{\"mark\":7}'"), ("second", echo)]);
        let second = json!({"type": "second", "capabilities": {"portMappings": true}});
        let result = plugins.add(&list(json!([{"type": "first"}, second])), &invocation()).await.unwrap();
        assert_eq!(addresses(&result), ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        let seen: Value = serde_json::from_slice(&fs::read(directory.path().join("seen")).unwrap()).unwrap();
        assert_eq!(seen["prevResult"]["mark"], 7);
        assert_eq!(seen["runtimeConfig"]["portMappings"][0]["hostPort"], 1);
        assert!(seen.get("capabilities").is_none());
    }

    #[tokio::test]
    async fn teardown_goes_backwards_and_past_a_failure() {
        let note = r#"cat >/dev/null; echo "$0" >> "$(dirname "$0")/order""#;
        let failing = format!("{note}; echo '{{\"code\":11,\"msg\":\"busy\"}}'; exit 1");
        let (directory, plugins) = plugins(&[("a", note), ("b", &failing)]);
        let outcome = plugins.del(&list(json!([{"type": "a"}, {"type": "b"}])), &invocation(), None).await;
        assert!(matches!(outcome, Err(CniError::Refused { code: 11, .. })), "{outcome:?}");
        let order = fs::read_to_string(directory.path().join("order")).unwrap();
        let names: Vec<_> = order.lines().filter_map(|l| l.rsplit('/').next()).collect();
        assert_eq!(names, ["b", "a"]);
    }

    #[tokio::test]
    async fn missing_plugin_is_named_with_where_it_was_looked_for() {
        let (_directory, plugins) = plugins(&[]);
        let message =
            plugins.add(&list(json!([{"type": "bridge"}])), &invocation()).await.unwrap_err().to_string();
        assert!(message.contains("\"bridge\"") && message.contains("install it"), "{message}");
    }

    #[tokio::test]
    async fn silent_plugin_is_killed_at_the_limit() {
        let (_directory, mut plugins) = plugins(&[("slow", "sleep 60")]);
        plugins.timeout = Duration::from_millis(50);
        let outcome = plugins.add(&list(json!([{"type": "slow"}])), &invocation()).await;
        assert!(matches!(outcome, Err(CniError::Timeout { .. })), "{outcome:?}");
    }

    #[test]
    fn addresses_of_other_interfaces_do_not_count() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [
                {"address": "fd00::2/64", "interface": 1},
                {"address": "10.0.0.2/24", "interface": 1},
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "nonsense", "interface": 1},
            ],
        });
        let expected: Vec<IpAddr> = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result), expected);
    }

    /// Results whose parts are of any kind, mostly of the right one.
    fn any_result() -> impl Strategy<Value = Value> {
        let index = prop_oneof![(0..4u64).prop_map(Value::from), Just(json!(u64::MAX)), Just(json!("1"))];
        let address = prop_oneof![
            any::<(IpAddr, u8)>().prop_map(|(ip, length)| json!(format!("{ip}/{length}"))),
            ".{0,8}".prop_map(Value::from),
            Just(Value::Null),
        ];
        let ip = (address, proptest::option::of(index)).prop_map(|(address, interface)| match interface {
            Some(interface) => json!({ "address": address, "interface": interface }),
            None => json!({ "address": address }),
        });
        let name = prop_oneof![Just(json!("eth0")), Just(json!("cni0")), Just(json!(7))];
        let interfaces = vec(name.prop_map(|name| json!({ "name": name })), 0..4).prop_map(Value::from);
        let ips = prop_oneof![vec(ip, 0..6).prop_map(Value::from), Just(json!({ "address": "10.0.0.1/8" }))];
        (interfaces, ips).prop_map(|(interfaces, ips)| json!({ "interfaces": interfaces, "ips": ips }))
    }

    proptest! {
        #[test]
        fn any_result_gives_addresses_that_it_has(result in any_result()) {
            let found = addresses(&result);
            let given = result["ips"].as_array().into_iter().flatten();
            let given: Vec<IpAddr> =
                given.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect();
            prop_assert!(found.iter().all(|ip| given.contains(ip)), "{:?} of {}", found, result);
            prop_assert!(found.is_sorted_by_key(IpAddr::is_ipv6));
        }

        #[test]
        fn any_complaint_of_a_plugin_is_one_bounded_line(msg: String, details: Vec<char>, code: u64, raw: Vec<u8>) {
            let details = String::from_iter(details);
            let printed = json!({ "code": code, "msg": msg, "details": details.repeat(50) }).to_string();
            for output in [printed.as_bytes(), &raw] {
                let text = refusal("bridge".into(), "ADD", output).to_string();
                prop_assert!(text.len() < 1200 && !text.contains(char::is_control), "{}", text);
            }
        }
    }
}
