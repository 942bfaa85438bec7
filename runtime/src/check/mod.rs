//! Whether this machine can run pods: `isopod check` prints it, and the daemon looks before it opens its door.
//!
//! Each [`Finding`] says what was looked at, what was found, and, where that is not good, what to do.

mod kvm_probe;
mod sys;

use crate::cgroup;
use crate::config::{Config, TemplateScope};
use crate::hypervisor::template;
use crate::network::Networks;
use crate::sandbox::network_config;
use crate::scratch::MKE2FS;
use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Magic of an ELF file.
const ELF: [u8; 4] = *b"\x7fELF";

/// Magic of EROFS's superblock, and where it is.
const EROFS: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
const EROFS_OFFSET: u64 = 1024;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it must be.
    Good,
    /// Pods run, or will once it is there; something is missing.
    Poor,
    /// No pod can run.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub subject: String,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is.
    pub remedy: String,
}

impl Finding {
    fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        let (subject, found) = (subject.into(), found.into());
        Self { subject, verdict: Verdict::Good, found, remedy: String::new() }
    }

    fn bad(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (subject, found, remedy) = (subject.into(), found.into(), remedy.into());
        Self { subject, verdict: Verdict::Bad, found, remedy }
    }

    fn poor(self) -> Self {
        if self.verdict == Verdict::Bad { Self { verdict: Verdict::Poor, ..self } } else { self }
    }
}

/// Looks at everything. Takes some milliseconds; the known-answer guest at most seconds.
pub fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![user(), kvm_probe::finding(), cgroups(), tun()];
    for handler in config.handler_names() {
        let Some(vm) = config.vm_of(handler) else { continue };
        let named = |what: &str| match handler {
            "" => what.to_owned(),
            handler => format!("{what} of {handler}"),
        };
        // The second name of the default handler is worth a line only where it differs.
        if handler == "isopod" && config.vm_of("").as_ref() == Some(&vm) {
            continue;
        }
        findings.push(magic(named("guest kernel"), &vm.kernel, 0, ELF, "an ELF vmlinux", "vm.kernel"));
        findings.push(magic(
            named("guest root"),
            &vm.root_image,
            EROFS_OFFSET,
            EROFS,
            "an EROFS image",
            "vm.root_image",
        ));
        findings.push(program(named("vmm"), &vm.vmm, "vm.vmm"));
    }
    findings.push(mke2fs());
    findings.push(cni(config).poor());
    findings.push(templates(config).poor());
    findings
}

/// Whether nothing keeps pods from running.
pub fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Bad)
}

/// The findings for a person.
pub fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Good => "ok",
            Verdict::Poor => "warn",
            Verdict::Bad => "FAIL",
        };
        let mut line = |text_of_line: String| {
            text.push_str(text_of_line.trim_end());
            text.push('\n');
        };
        line(format!("{:<width$}  {verdict:<4}  {}", finding.subject, finding.found));
        if !finding.remedy.is_empty() {
            line(format!("{:<width$}        -> {}", "", finding.remedy));
        }
    }
    text
}

/// The findings that keep pods from running, in one line each.
pub fn complaints(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings.iter().filter(|finding| finding.verdict == Verdict::Bad) {
        write!(text, "\n{}: {}: {}", finding.subject, finding.found, finding.remedy)
            .expect("writing to a string does not fail");
    }
    text
}

fn user() -> Finding {
    match nix::unistd::geteuid().as_raw() {
        0 => Finding::good("user", "root"),
        uid => Finding::bad("user", format!("uid {uid}"), "run it as root: it makes namespaces and cgroups"),
    }
}

fn cgroups() -> Finding {
    if let Err(error) = cgroup::require_v2() {
        return Finding::bad("cgroup v2", "not there", error.to_string());
    }
    let controllers =
        fs::read_to_string(Path::new(cgroup::ROOT).join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|c| !controllers.split(' ').any(|d| d.trim() == *c))
        .collect();
    match missing.is_empty() {
        true => Finding::good("cgroup v2", format!("controllers {}", controllers.trim())),
        false => Finding::bad(
            "cgroup v2",
            format!("without the controllers {}", missing.join(", ")),
            "boot the host without cgroup_disable, and with cgroup v1 unmounted: pods are not accounted without",
        )
        .poor(),
    }
}

fn tun() -> Finding {
    match fs::metadata("/dev/net/tun") {
        Ok(metadata) if metadata.file_type().is_char_device() => Finding::good("tun", "/dev/net/tun"),
        _ => Finding::bad("tun", "no /dev/net/tun", "modprobe tun: pods' network cards are taps"),
    }
}

/// A file that must begin, at an offset, with four certain bytes.
fn magic(subject: String, path: &Path, offset: u64, wanted: [u8; 4], kind: &str, key: &str) -> Finding {
    let read = || -> io::Result<[u8; 4]> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let shown = path.display();
    let remedy = format!("build it (make artefacts) and set {key} to its path");
    match read() {
        Ok(bytes) if bytes == wanted => Finding::good(subject, shown.to_string()),
        Ok(_) => Finding::bad(subject, format!("{shown} is not {kind}"), remedy),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Finding::bad(subject, format!("{shown} is too short for {kind}"), remedy)
        }
        Err(error) => Finding::bad(subject, format!("{shown}: {error}"), remedy),
    }
}

fn program(subject: String, path: &Path, key: &str) -> Finding {
    let remedy = format!("build it (make build) and set {key} to its path");
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
            Finding::good(subject, path.display().to_string())
        }
        Ok(_) => Finding::bad(subject, format!("{} is not a program", path.display()), remedy),
        Err(error) => Finding::bad(subject, format!("{}: {error}", path.display()), remedy),
    }
}

fn mke2fs() -> Finding {
    match in_path(MKE2FS) {
        Some(path) => Finding::good(MKE2FS, path.display().to_string()),
        None => Finding::bad(MKE2FS, "not in PATH", "install e2fsprogs: it makes pods' scratch disks"),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

fn cni(config: &Config) -> Finding {
    let networks = Networks::new(network_config(config));
    match networks.and_then(|networks| networks.ready()) {
        Ok(()) => Finding::good("cni", config.cni.conf_dir.display().to_string()),
        Err(error) => Finding::bad("cni", error.to_string(), "until then the node is NetworkReady=false"),
    }
}

/// What the records of templates say; only a daemon that runs has some.
fn templates(config: &Config) -> Finding {
    let subject = "templates";
    let off = |name| config.vm_of(name).is_some_and(|vm| vm.template == TemplateScope::Off);
    if config.handler_names().into_iter().all(off) {
        return Finding::good(subject, "off: every pod boots its guest");
    }
    let records = template::recorded(&config.daemon.state_dir);
    if !records.is_empty() {
        let ages = records.iter().map(|record| format!("{} s", template::age_seconds(record.built_at_ns)));
        let ages: Vec<String> = ages.collect();
        let found = format!("{}, made {} ago", records.len(), ages.join(", "));
        return match records.iter().filter(|record| record.working_set.is_empty()).count() {
            0 => Finding::good(subject, found),
            unknown => Finding::bad(
                subject,
                format!("{found}; {unknown} without a rehearsal yet"),
                "until it succeeds its clones start slower: crictl info has rehearsal_reason, the daemon's log more",
            ),
        };
    }
    match UnixStream::connect(&config.daemon.socket) {
        Err(_) => Finding::good(subject, "none: the daemon, which makes them, does not run"),
        Ok(_) => Finding::bad(
            subject,
            "none",
            "pods boot until there is one: crictl info and the daemon's log tell whether it is being made, or why not",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_the_wrong_kind_is_told_from_a_missing_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinux");
        let look = |path: &Path| magic("guest kernel".into(), path, 0, ELF, "an ELF vmlinux", "vm.kernel");
        assert!(look(&path).found.contains("No such file"));
        fs::write(&path, "#!").unwrap();
        assert!(look(&path).found.ends_with("is too short for an ELF vmlinux"));
        fs::write(&path, "#!/bin/sh").unwrap();
        assert!(look(&path).found.ends_with("is not an ELF vmlinux"));
        fs::write(&path, b"\x7fELF....").unwrap();
        assert_eq!(look(&path).verdict, Verdict::Good);
    }

    #[test]
    fn table_gives_the_remedy_below_what_is_bad() {
        let findings =
            [Finding::good("tun", "/dev/net/tun"), Finding::bad("cgroup v2", "not there", "mount it")];
        assert_eq!(
            table(&findings),
            "tun        ok    /dev/net/tun\ncgroup v2  FAIL  not there\n                 -> mount it\n"
        );
        assert!(!passed(&findings));
        assert!(passed(&findings.map(Finding::poor)));
    }
}
