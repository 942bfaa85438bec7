//! Holds the borders of DESIGN 2: modules of this crate import only downwards, and the products meet only at sockets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules and what each may use, beside those of the lowest level.
const MAY_USE: &[(&str, &[&str])] = &[
    ("command", &["serve", "check", "image", "trace"]),
    (
        "serve",
        &[
            "check",
            "cri",
            "pod",
            "container",
            "image",
            "sandbox",
            "preparation",
            "hypervisor",
            "network",
            "cgroup",
            "scratch",
            "host_users",
        ],
    ),
    ("check", &["sandbox", "hypervisor", "network", "cgroup", "scratch"]),
    (
        "cri",
        &[
            "pod",
            "container",
            "image",
            "sandbox",
            "agent_client",
            "hypervisor",
            "network",
            "cgroup",
            "scratch",
        ],
    ),
    ("pod", &["container", "sandbox"]),
    ("container", &["sandbox", "hypervisor", "agent_client", "cgroup"]),
    ("sandbox", &["hypervisor", "agent_client", "network", "cgroup", "scratch", "host_users"]),
    ("preparation", &["container", "agent_client", "hypervisor", "scratch"]),
    ("image", &[]),
    ("agent_client", &["hypervisor"]),
    ("hypervisor", &["cgroup"]),
    ("network", &[]),
    ("cgroup", &[]),
    ("scratch", &[]),
    ("host_users", &[]),
    ("trace", &[]),
    // Tests only.
    ("fuzz_targets", &["container", "cri", "image", "network"]),
];

/// What everybody may use, and what uses nothing but its own kind.
const LOWEST: &[&str] = &[
    "config",
    "store",
    "undo",
    "id",
    "listing",
    "lock",
    "hostile_text",
    "private",
    "resources",
    "wall_clock",
    "cpu_list",
    "cpu_rate",
    "oom_score",
];

fn crate_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
    files
}

/// The module at the top that a file belongs to.
fn module_of(file: &Path) -> String {
    let relative = file.strip_prefix(crate_root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules at the top that a line imports or names by `crate::`.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let mut names = Vec::new();
    for after in code.split("crate::").skip(1) {
        let list = match after.strip_prefix('{') {
            Some(list) => list.split(','),
            None => after.split(','),
        };
        let first =
            |part: &str| part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        match after.starts_with('{') {
            true => names.extend(list.map(first)),
            false => names.push(first(after)),
        }
    }
    names.retain(|name: &String| !name.is_empty());
    names
}

#[test]
fn modules_import_only_downwards() {
    let mut wrong = Vec::new();
    for file in rust_files(&crate_root().join("src")) {
        let module = module_of(&file);
        if matches!(module.as_str(), "lib" | "bin") {
            continue;
        }
        let allowed: Vec<&str> = match MAY_USE.iter().find(|(name, _)| *name == module) {
            Some((_, uses)) => uses.iter().chain(LOWEST).copied().collect(),
            None if LOWEST.contains(&module.as_str()) => LOWEST.to_vec(),
            None => panic!("module {module} has no line in this test: say what it may use"),
        };
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            for used in named(line) {
                if used != module && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{}:{}: {module} uses {used}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports that go the wrong way:\n{}", wrong.join("\n"));
}

/// Templates stand above the hypervisor's other files: `template::cloning` decides between a clone and a
/// boot, and what starts, asks and ends VMs serves both.
#[test]
fn hypervisor_below_its_templates_knows_none() {
    const BELOW: &[&str] = &["local", "vm", "process", "control", "files", "vsock", "sys", "fake"];
    let mut wrong = Vec::new();
    for name in BELOW {
        let file = crate_root().join(format!("src/hypervisor/{name}.rs"));
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("template::") || code.contains("::template") {
                wrong.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "the hypervisor's lower files use its templates:\n{}", wrong.join("\n"));
}

/// Modules that serve an API, and the crates of its messages, which only that module and tests may use.
const SERVICES: &[(&str, &[&str])] = &[("cri", &["k8s_cri", "isopod_protocols::cri"])];

#[test]
fn messages_of_an_api_stay_in_its_module() {
    let mut wrong = Vec::new();
    for file in rust_files(&crate_root().join("src")) {
        let inside = file.strip_prefix(crate_root()).unwrap();
        if inside.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let module = module_of(&file);
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (service, crates) in SERVICES.iter().filter(|(service, _)| *service != module) {
                if crates.iter().any(|name| code.contains(name)) {
                    wrong.push(format!(
                        "{}:{}: {module} uses messages of {service}",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "messages of an API outside of its module:\n{}", wrong.join("\n"));
}

#[test]
fn products_meet_only_at_sockets() {
    let workspace = crate_root().parent().unwrap().to_owned();
    for product in ["protocols", "vmm", "agent", "runtime", "tests"] {
        let manifest = fs::read_to_string(workspace.join(product).join("Cargo.toml")).unwrap();
        for line in manifest.lines().filter(|line| line.trim_start().starts_with("isopod-")) {
            assert!(
                line.trim_start().starts_with("isopod-protocols") && product != "protocols",
                "{product}/Cargo.toml: {line}: products share nothing but isopod-protocols"
            );
        }
    }
}

#[test]
fn names_are_read_from_imports_and_paths() {
    assert_eq!(named("use crate::store::{Collection, Durability};"), ["store"]);
    assert_eq!(named("use crate::{config, undo::Undo};"), ["config", "undo"]);
    assert_eq!(named("    let x = crate::id::new_id();"), ["id"]);
    assert_eq!(named("//! see [`crate::sandbox`]"), [""; 0]);
}
