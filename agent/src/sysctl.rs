//! Kernel settings that a pod may ask for: those that belong to its network and IPC, which are the guest's own.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Longest value, in bytes.
const MAX_VALUE: usize = 4096;

/// Beginnings of the names that a pod may set (the namespaced ones of Kubernetes).
const ALLOWED: [&str; 5] = ["net.", "kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

/// A setting, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    name: String,
    value: String,
    path: PathBuf,
}

/// Why a setting is not made.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Not one of those that a pod may set, or not a name at all.
    #[error(
        "sysctls: {0:?} cannot be set by a pod; allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*"
    )]
    NotAllowed(String),
    /// The value cannot be one.
    #[error("sysctls: the value of {0:?} is longer than {MAX_VALUE} bytes or holds a zero byte")]
    Value(String),
    /// The kernel refused.
    #[error("sysctls: {name:?} cannot be set to {value:?}")]
    Refused {
        /// The setting.
        name: String,
        /// What it should have been.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Sysctl {
    /// Checks a setting.
    pub fn parse(name: &str, value: &str) -> Result<Sysctl, SysctlError> {
        let parts = parts(name).ok_or_else(|| SysctlError::NotAllowed(shown(name)))?;
        let dotted = parts.join(".");
        // "kernel.sem" is a name, not a beginning.
        let allowed = ALLOWED.iter().any(|allowed| dotted.starts_with(allowed))
            && (!dotted.starts_with("kernel.sem") || dotted == "kernel.sem");
        if !allowed {
            return Err(SysctlError::NotAllowed(shown(name)));
        }
        if value.len() > MAX_VALUE || value.contains('\0') {
            return Err(SysctlError::Value(shown(name)));
        }
        let path = ["/proc/sys"].into_iter().chain(parts.iter().map(String::as_str)).collect();
        Ok(Sysctl { name: name.to_owned(), value: value.to_owned(), path })
    }

    /// Makes the setting.
    pub fn apply(&self) -> Result<(), SysctlError> {
        fs::write(&self.path, &self.value).map_err(|source| SysctlError::Refused {
            name: self.name.clone(),
            value: shown(&self.value),
            source,
        })
    }
}

/// The parts of a name; sysctl(8) lets either `.` or `/` separate them, whichever comes first, and the other one then
/// belongs to a part (`net/ipv4/conf/eth0.100/forwarding`).
fn parts(name: &str) -> Option<Vec<String>> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let parts: Vec<String> = name
        .split(separator)
        .map(|part| if separator == '.' { part.replace('/', ".") } else { part.to_owned() })
        .collect();
    let plain = |part: &String| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | ':');
        !part.is_empty() && part != "." && part != ".." && part.chars().all(allowed)
    };
    (name.len() < 256 && parts.iter().all(plain)).then_some(parts)
}

fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(name: &str) -> Option<String> {
        Sysctl::parse(name, "1").ok().map(|sysctl| sysctl.path.to_string_lossy().into_owned())
    }

    #[test]
    fn namespaced_settings_are_allowed() {
        assert_eq!(path("kernel.shm_rmid_forced").unwrap(), "/proc/sys/kernel/shm_rmid_forced");
        assert_eq!(path("fs.mqueue.msg_max").unwrap(), "/proc/sys/fs/mqueue/msg_max");
        assert_eq!(path("kernel.sem").unwrap(), "/proc/sys/kernel/sem");
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "/proc/sys/net/ipv4/ip_forward");
    }

    #[test]
    fn both_separators_name_the_same_file() {
        let path_of_both = "/proc/sys/net/ipv4/conf/eth0.100/forwarding";
        assert_eq!(path("net/ipv4/conf/eth0.100/forwarding").unwrap(), path_of_both);
        assert_eq!(path("net.ipv4.conf.eth0/100.forwarding").unwrap(), path_of_both);
    }

    #[test]
    fn settings_of_the_whole_guest_are_refused() {
        for name in [
            "kernel.panic",
            "vm.swappiness",
            "kernel.semantics",
            "fs.file-max",
            "network",
            "",
            "kernel.domainname",
        ] {
            assert!(path(name).is_none(), "{name}");
        }
    }

    #[test]
    fn names_that_leave_the_tree_are_refused() {
        for name in ["net/../kernel/panic", "net.//.kernel", "net.", "net..x", "net/./x", "net.a b"] {
            assert!(path(name).is_none(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn accepted_names_stay_below_proc_sys(name in "(net|kernel|fs)[./a-z]{0,20}") {
            if let Some(path) = path(&name) {
                prop_assert!(path.starts_with("/proc/sys/"));
                let stays = std::path::Path::new(&path).components().all(|c| c != std::path::Component::ParentDir);
                prop_assert!(stays);
            }
        }
    }
}
