//! The OCI spec that the runtime sent, completed and checked into the one that the container library gets.
//! Pure.
//!
//! The runtime knows what was asked of the container; only the agent knows where its root is mounted, who its
//! user is in that image, which pid namespace it lives in and which cgroup holds it. What cannot be had here
//! is refused by name.

use crate::child::filter::FilterError;
use isopod_protocols::agent::ResolvedUser;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxNamespace, LinuxNamespaceType, LinuxResources, LinuxSeccomp, Spec,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What the agent adds to a spec.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The container's root in the guest.
    pub root: PathBuf,
    /// Ids of the container's processes.
    pub user: ResolvedUser,
    /// Home directory of that user, for `HOME` where the environment has none.
    pub home: String,
    /// Environment entries that follow the spec's own.
    pub env: Vec<Vec<u8>>,
    /// The pid namespace to join; none: a new one.
    pub pid_namespace: Option<PathBuf>,
    /// The container's cgroup below the root of the cgroup tree.
    pub cgroup: PathBuf,
    /// Whether the container's process gets a terminal.
    pub terminal: bool,
}

/// A spec that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It is no OCI spec.
    #[error("spec cannot be read as an OCI runtime spec")]
    Malformed(#[from] serde_json::Error),
    /// A field that must be there is not, or not in the right shape.
    #[error("spec field {field} {rule}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// An environment entry that is not one. Its value may be a secret, so only its name is told.
    #[error("environment entry {0:?} is not of the form NAME=value, or its value holds a zero byte")]
    Environment(String),
    /// A seccomp profile that cannot be a filter.
    #[error(transparent)]
    Seccomp(#[from] FilterError),
    /// Asked for something that the guest does not give.
    #[error("spec field {0} is not supported in the guest: leave it out")]
    Unsupported(&'static str),
}

/// A spec split by who acts on it.
#[derive(Debug)]
pub struct Completed {
    /// For the container library.
    pub spec: Spec,
    /// Of the container's processes, `NAME=value` each. Apart from the spec, whose strings are UTF-8.
    pub environment: Vec<Vec<u8>>,
    /// The seccomp profile, for the agent to translate. The library gets none.
    pub seccomp: Option<LinuxSeccomp>,
    /// For the agent, which limits a container before its process exists and again when it is updated.
    pub resources: LinuxResources,
}

/// Completes a spec.
pub fn complete(json: &[u8], facts: &Facts) -> Result<Completed, SpecError> {
    let mut value: Value = serde_json::from_slice(json)?;
    let process = value
        .get_mut("process")
        .and_then(Value::as_object_mut)
        .ok_or(SpecError::Field { field: "process", rule: "is missing: name the command to run" })?;
    // Both are required by the typed spec; the user's umask is the only part of it that the runtime decides.
    let umask = process.get("user").and_then(|user| user.get("umask")).cloned();
    process.insert("user".to_owned(), user(&facts.user, umask));
    process.entry("cwd").or_insert(json!("/"));

    let mut spec: Spec = serde_json::from_value(value)?;
    check(&spec)?;
    complete_root(&mut spec, &facts.root);
    let environment = complete_process(&mut spec, facts)?;
    let (resources, seccomp) = complete_linux(&mut spec, facts)?;
    if seccomp.is_some() {
        allow_filter(&mut spec);
    }
    Ok(Completed { spec, environment, seccomp, resources })
}

/// Checks an environment entry, of a spec or of an exec.
pub fn check_environment(entries: &[Vec<u8>]) -> Result<(), SpecError> {
    let name_length = |entry: &[u8]| entry.iter().position(|byte| *byte == b'=');
    let good = |entry: &&Vec<u8>| name_length(entry).is_some_and(|at| at > 0) && !entry.contains(&0);
    match entries.iter().find(|entry| !good(entry)) {
        Some(bad) => {
            let name = &bad[..name_length(bad).unwrap_or(bad.len())];
            Err(SpecError::Environment(String::from_utf8_lossy(name).into_owned()))
        }
        None => Ok(()),
    }
}

/// Checks a command line, of a spec or of an exec.
pub fn check_arguments(field: &'static str, arguments: &[String]) -> Result<(), SpecError> {
    if arguments.first().is_none_or(String::is_empty) {
        return Err(SpecError::Field { field, rule: "names no command" });
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(SpecError::Field { field, rule: "must not contain a zero byte" });
    }
    Ok(())
}

fn user(user: &ResolvedUser, umask: Option<Value>) -> Value {
    let mut value = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.supplemental_groups });
    if let Some(umask) = umask {
        value["umask"] = umask;
    }
    value
}

fn check(spec: &Spec) -> Result<(), SpecError> {
    if !spec.version().starts_with("1.") {
        return Err(SpecError::Field { field: "ociVersion", rule: "must be 1.x" });
    }
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
    let refused = [
        ("hooks", spec.hooks().is_some()),
        ("linux.intelRdt", linux.is_some_and(|linux| linux.intel_rdt().is_some())),
        ("linux.netDevices", linux.is_some_and(|l| l.net_devices().as_ref().is_some_and(|d| !d.is_empty()))),
        ("linux.namespaces[user]", namespaces.clone().any(|ns| ns.typ() == LinuxNamespaceType::User)),
        ("linux.namespaces[time]", namespaces.clone().any(|ns| ns.typ() == LinuxNamespaceType::Time)),
        ("linux.seccomp.listenerPath", {
            let seccomp = linux.and_then(|linux| linux.seccomp().as_ref());
            seccomp.is_some_and(|seccomp| seccomp.listener_path().is_some())
        }),
    ];
    match refused.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(SpecError::Unsupported(field)),
        None => Ok(()),
    }
}

fn complete_root(spec: &mut Spec, path: &Path) {
    let mut root = spec.root().clone().unwrap_or_default();
    if spec.root().is_none() {
        // The type's default is a read-only root; the OCI spec's is a writable one.
        root.set_readonly(Some(false));
    }
    root.set_path(path.to_owned());
    spec.set_root(Some(root));
}

/// Answers the whole environment.
fn complete_process(spec: &mut Spec, facts: &Facts) -> Result<Vec<Vec<u8>>, SpecError> {
    let process = spec.process_mut().as_mut().expect("`complete` has found a process");
    check_arguments("process.args", process.args().as_deref().unwrap_or_default())?;
    if !process.cwd().is_absolute() {
        return Err(SpecError::Field { field: "process.cwd", rule: "must be an absolute path" });
    }
    let own = process.env().clone().unwrap_or_default().into_iter().map(String::into_bytes);
    let mut environment: Vec<Vec<u8>> = own.chain(facts.env.iter().cloned()).collect();
    let home = format!("HOME={}", facts.home);
    // One that is empty is as good as none, as for runc. The last of a name holds.
    let own = environment.iter().rev().find_map(|entry| entry.strip_prefix(b"HOME="));
    if own.is_none_or(<[u8]>::is_empty) {
        environment.push(home.clone().into_bytes());
    }
    // Also the one of the image's passwd, which may hold any byte.
    check_environment(&environment)?;
    // The library gets only this one, so that it does not look for it: its lookup may load code out of the
    // image.
    let home = if facts.home.is_empty() { "HOME=/".to_owned() } else { home };
    process.set_env(Some(vec![home]));
    process.set_terminal(Some(facts.terminal));
    Ok(environment)
}

/// Without `no_new_privs` loading a filter needs CAP_SYS_ADMIN. The process has it until execve, which gives
/// the command what the bounding, inheritable and ambient sets leave: those stay as they are.
fn allow_filter(spec: &mut Spec) {
    let process = spec.process_mut().as_mut().expect("`complete` has found a process");
    if process.no_new_privileges() == Some(true) {
        return;
    }
    let Some(mut capabilities) = process.capabilities().clone() else { return };
    let with_admin = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(Capability::SysAdmin);
        Some(set)
    };
    let (effective, permitted) = (with_admin(capabilities.effective()), with_admin(capabilities.permitted()));
    capabilities.set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(capabilities));
}

fn complete_linux(
    spec: &mut Spec,
    facts: &Facts,
) -> Result<(LinuxResources, Option<LinuxSeccomp>), SpecError> {
    let linux = spec.linux_mut().as_mut().ok_or(SpecError::Field { field: "linux", rule: "is missing" })?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
    for namespace in &mut namespaces {
        if namespace.path().as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            namespace.set_path(None);
        }
    }
    let mut pid = LinuxNamespace::default();
    pid.set_typ(LinuxNamespaceType::Pid).set_path(facts.pid_namespace.clone());
    namespaces.push(pid);
    if !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount) {
        // Without one the library would change the agent's own mounts.
        namespaces.push(of_type(LinuxNamespaceType::Mount));
    }
    linux.set_namespaces(Some(namespaces));
    linux.set_cgroups_path(Some(facts.cgroup.clone()));
    let resources = linux.resources().clone();
    linux.set_resources(None);
    let seccomp = linux.seccomp().clone();
    linux.set_seccomp(None);
    Ok((resources.unwrap_or_default(), seccomp))
}

fn of_type(typ: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ);
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            root: "/roots/c1".into(),
            user: ResolvedUser { uid: 1000, gid: 100, supplemental_groups: vec![5, 6] },
            home: "/home/me".into(),
            env: Vec::new(),
            pid_namespace: None,
            cgroup: "/containers/c1".into(),
            terminal: false,
        }
    }

    fn spec(process: Value, linux: Value) -> Vec<u8> {
        json!({ "ociVersion": "1.2.0", "process": process, "linux": linux }).to_string().into_bytes()
    }

    fn completed(process: Value, linux: Value) -> Result<Spec, SpecError> {
        complete(&spec(process, linux), &facts()).map(|completed| completed.spec)
    }

    fn namespaces(spec: &Spec) -> Vec<(LinuxNamespaceType, Option<PathBuf>)> {
        let linux = spec.linux().as_ref().unwrap();
        linux.namespaces().iter().flatten().map(|ns| (ns.typ(), ns.path().clone())).collect()
    }

    #[test]
    fn sparse_spec_is_completed() {
        let spec = completed(json!({ "args": ["sh"] }), json!({})).unwrap();
        let root = spec.root().as_ref().unwrap();
        assert_eq!((root.path(), root.readonly()), (&PathBuf::from("/roots/c1"), Some(false)));
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 100));
        assert_eq!(process.user().additional_gids(), &Some(vec![5, 6]));
        assert_eq!(process.env(), &Some(vec!["HOME=/home/me".to_owned()]));
        assert_eq!(process.cwd(), &PathBuf::from("/"));
        assert_eq!(namespaces(&spec), [(LinuxNamespaceType::Pid, None), (LinuxNamespaceType::Mount, None)]);
    }

    #[test]
    fn joined_pid_namespace_replaces_the_specs_own() {
        let linux = json!({ "namespaces": [{ "type": "pid" }, { "type": "mount", "path": "" }] });
        let facts = Facts { pid_namespace: Some("/proc/7/ns/pid".into()), ..facts() };
        let completed = complete(&spec(json!({ "args": ["sh"] }), linux), &facts).unwrap();
        assert_eq!(
            namespaces(&completed.spec),
            [(LinuxNamespaceType::Mount, None), (LinuxNamespaceType::Pid, Some("/proc/7/ns/pid".into()))]
        );
    }

    #[test]
    fn runtimes_user_gives_way_but_its_umask_stays() {
        let process = json!({ "args": ["sh"], "user": { "uid": 0, "gid": 0, "umask": 18 } });
        let spec = completed(process, json!({})).unwrap();
        let user = spec.process().as_ref().unwrap().user();
        assert_eq!((user.uid(), user.umask()), (1000, Some(18)));
    }

    #[test]
    fn resources_are_taken_out_for_the_agent() {
        let linux = json!({ "resources": { "pids": { "limit": 9 } } });
        let completed = complete(&spec(json!({ "args": ["sh"] }), linux), &facts()).unwrap();
        assert!(completed.spec.linux().as_ref().unwrap().resources().is_none());
        assert_eq!(completed.resources.pids().as_ref().unwrap().limit(), 9);
    }

    #[test]
    fn only_a_filter_without_no_new_privs_needs_a_privilege_until_execve() {
        let linux = json!({ "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" } });
        let capabilities =
            json!({ "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] });
        let of = |no_new_privileges: bool, linux: Value| {
            let process =
                json!({ "args": ["sh"], "noNewPrivileges": no_new_privileges, "capabilities": capabilities });
            let completed = complete(&spec(process, linux), &facts()).unwrap();
            assert!(completed.spec.linux().as_ref().unwrap().seccomp().is_none());
            let had = completed.spec.process().as_ref().unwrap().capabilities().clone().unwrap();
            let admin = |set: &Option<Capabilities>| set.as_ref().unwrap().contains(&Capability::SysAdmin);
            (
                completed.seccomp.is_some(),
                admin(had.bounding()),
                admin(had.effective()),
                admin(had.permitted()),
            )
        };
        assert_eq!(of(false, linux.clone()), (true, false, true, true));
        assert_eq!(of(true, linux), (true, false, false, false));
        assert_eq!(of(false, json!({})), (false, false, false, false));
    }

    #[test]
    fn own_home_and_read_only_root_are_kept() {
        let mut value: Value =
            serde_json::from_slice(&spec(json!({ "args": ["sh"], "env": ["HOME=/x"] }), json!({}))).unwrap();
        value["root"] = json!({ "path": "ignored", "readonly": true });
        let facts = Facts { env: vec![b"B=\xff".to_vec()], ..facts() };
        let Completed { spec, environment, .. } = complete(value.to_string().as_bytes(), &facts).unwrap();
        assert_eq!(environment, [b"HOME=/x".to_vec(), b"B=\xff".to_vec()]);
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    }

    #[test]
    fn home_of_the_images_passwd_adds_no_other_entry() {
        let facts = Facts { home: "/\0LD_PRELOAD=/x.so".into(), ..facts() };
        let refused = complete(&spec(json!({ "args": ["sh"] }), json!({})), &facts).unwrap_err();
        assert!(matches!(&refused, SpecError::Environment(name) if name == "HOME"), "{refused}");
        // It does not matter where it is not used.
        let process = json!({ "args": ["sh"], "env": ["HOME=/x"] });
        let completed = complete(&spec(process, json!({})), &facts).unwrap();
        assert_eq!(completed.environment, [b"HOME=/x".to_vec()]);
    }

    #[test]
    fn unusable_processes_are_refused() {
        for process in [
            json!({}),
            json!({ "args": [] }),
            json!({ "args": [""] }),
            json!({ "args": ["a\0b"] }),
            json!({ "args": ["sh"], "cwd": "tmp" }),
            json!({ "args": ["sh"], "env": ["=x"] }),
            json!({ "args": ["sh"], "env": ["NAME"] }),
            json!({ "args": ["sh"], "env": ["NAME=a\0b"] }),
        ] {
            assert!(completed(process.clone(), json!({})).is_err(), "{process}");
        }
    }

    #[test]
    fn what_the_guest_does_not_give_is_refused_by_name() {
        for (linux, name) in
            [(json!({ "namespaces": [{ "type": "user" }] }), "user"), (json!({ "intelRdt": {} }), "intelRdt")]
        {
            let error = completed(json!({ "args": ["sh"] }), linux).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
