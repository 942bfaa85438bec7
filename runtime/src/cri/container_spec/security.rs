//! A container's confinement within its guest: capabilities, seccomp, masked paths.
//!
//! Called by `oci`. The VM is the wall between pods; this is the wall between a container and its own pod's
//! agent.

use super::ContainerConfigError;
use super::{seccomp, seccomp_profile};
use isopod_protocols::cri::security_profile::ProfileType;
use isopod_protocols::cri::{LinuxContainerSecurityContext, SecurityProfile};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxSeccomp};
use std::path::Path;

/// What a container may do unless it says otherwise: the set that container engines agree on.
const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Refuses what the guest's kernel does not have or a VM cannot give.
///
/// # Errors
/// Names the field and what to do.
pub fn refuse_impossible(context: &LinuxContainerSecurityContext) -> Result<(), ContainerConfigError> {
    let selinux = context
        .selinux_options
        .as_ref()
        .is_some_and(|o| *o != isopod_protocols::cri::SeLinuxOption::default());
    if selinux {
        return Err(ContainerConfigError::Impossible {
            what: "an SELinux label".to_owned(),
            instead: "the guest's kernel has no SELinux; leave seLinuxOptions out",
        });
    }
    let localhost = |p: &isopod_protocols::cri::SecurityProfile| p.profile_type() == ProfileType::Localhost;
    #[allow(deprecated)]
    let named = context.apparmor_profile.starts_with("localhost/");
    if named || context.apparmor.as_ref().is_some_and(localhost) {
        return Err(ContainerConfigError::Impossible {
            what: "an AppArmor profile of the host".to_owned(),
            instead: "the guest's kernel has no AppArmor; use RuntimeDefault or a seccomp profile",
        });
    }
    Ok(())
}

/// The capabilities of a container's first process.
///
/// # Errors
/// A name that is no capability.
pub fn capabilities(
    context: &LinuxContainerSecurityContext,
) -> Result<LinuxCapabilities, ContainerConfigError> {
    let all: Capabilities = ALL.into_iter().collect();
    let mut granted: Capabilities =
        if context.privileged { all.clone() } else { DEFAULT_CAPABILITIES.into_iter().collect() };
    if let Some(wishes) = &context.capabilities {
        // Dropping ALL comes first, so that "drop ALL, add X" leaves X, in whatever order it is written.
        if wishes.drop_capabilities.iter().any(|c| is_all(c)) {
            granted.clear();
        }
        if wishes.add_capabilities.iter().any(|c| is_all(c)) {
            granted = all;
        }
        for name in wishes.add_capabilities.iter().filter(|c| !is_all(c)) {
            granted.insert(parse("capabilities.add_capabilities", name)?);
        }
        for name in wishes.drop_capabilities.iter().filter(|c| !is_all(c)) {
            granted.remove(&parse("capabilities.drop_capabilities", name)?);
        }
    }
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(granted.clone()))
        .set_effective(Some(granted.clone()))
        .set_permitted(Some(granted))
        .set_inheritable(None)
        .set_ambient(None);
    Ok(capabilities)
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

fn parse(field: &'static str, name: &str) -> Result<Capability, ContainerConfigError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.into_iter()
        .find(|c| c.to_string() == bare || c.to_string().strip_prefix("CAP_") == Some(bare))
        .ok_or_else(|| ContainerConfigError::Invalid {
            field,
            reason: format!("{name:?} is no capability: see capabilities(7)"),
        })
}

/// The seccomp filter of a container; none where it is unconfined or privileged.
///
/// # Errors
/// A profile of the host that cannot be read.
pub fn seccomp(
    context: &LinuxContainerSecurityContext,
) -> Result<Option<LinuxSeccomp>, ContainerConfigError> {
    let named = context.seccomp.clone().map_or_else(|| old_profile(context), |profile| Ok(Some(profile)))?;
    let Some(profile) = named.filter(|_| !context.privileged) else {
        return Ok(None);
    };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(seccomp::default_profile(&capabilities(context)?))),
        ProfileType::Localhost => {
            let path = &profile.localhost_ref;
            // Older clients prefix the path; containerd takes both.
            seccomp_profile::read(Path::new(path.strip_prefix("localhost/").unwrap_or(path))).map(Some)
        }
    }
}

/// The profile of the field that older clients fill.
fn old_profile(
    context: &LinuxContainerSecurityContext,
) -> Result<Option<SecurityProfile>, ContainerConfigError> {
    #[allow(deprecated)]
    let name = context.seccomp_profile_path.as_str();
    let kind = match name {
        "" => return Ok(None),
        "unconfined" => ProfileType::Unconfined,
        "runtime/default" | "docker/default" => ProfileType::RuntimeDefault,
        name if name.starts_with("localhost/") => ProfileType::Localhost,
        name => {
            let reason = format!("{name:?} is none of unconfined, runtime/default and localhost/PATH");
            return Err(ContainerConfigError::Invalid { field: "seccomp_profile_path", reason });
        }
    };
    Ok(Some(SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() }))
}

/// Files of /proc and /sys that tell of the guest's kernel more than a container needs.
pub fn masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Every capability of capabilities(7).
const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setgid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::cri::Capability as Wishes;
    use std::fs;

    fn with(add: &[&str], drop: &[&str]) -> LinuxContainerSecurityContext {
        let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        let wishes =
            Wishes { add_capabilities: list(add), drop_capabilities: list(drop), ..Wishes::default() };
        LinuxContainerSecurityContext {
            capabilities: Some(wishes),
            ..LinuxContainerSecurityContext::default()
        }
    }

    fn granted(context: &LinuxContainerSecurityContext) -> Capabilities {
        capabilities(context).unwrap().effective().clone().unwrap()
    }

    #[test]
    fn names_come_with_or_without_prefix_and_in_any_case() {
        for name in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin"] {
            assert!(granted(&with(&[name], &[])).contains(&Capability::NetAdmin), "{name}");
        }
        assert!(matches!(capabilities(&with(&["NO_SUCH"], &[])), Err(ContainerConfigError::Invalid { .. })));
    }

    #[test]
    fn dropping_all_and_adding_one_leaves_one() {
        assert_eq!(granted(&with(&["KILL"], &["ALL"])).into_iter().collect::<Vec<_>>(), [Capability::Kill]);
        assert_eq!(granted(&with(&["ALL"], &[])).len(), 41);
        assert!(granted(&with(&["ALL"], &["KILL"])).len() == 40);
    }

    #[test]
    fn profile_of_the_node_is_found_with_and_without_prefix_and_names_what_is_wrong() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |reference: &str, text: &str| {
            fs::write(file.path(), text).unwrap();
            let localhost_ref = reference.replace("FILE", file.path().to_str().unwrap());
            let profile = SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref };
            seccomp(&LinuxContainerSecurityContext { seccomp: Some(profile), ..with(&[], &[]) })
        };
        let plain = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_ERRNO","args":null}]}"#;
        for reference in ["FILE", "localhost/FILE"] {
            assert!(read(reference, plain).unwrap().is_some(), "{reference}");
        }
        for (reference, text, expected) in [
            ("localhost/FILE.gone", plain, "No such file"),
            ("localhost/profiles/x.json", plain, "not absolute"),
            ("FILE", r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "needs a listener"),
            (
                "FILE",
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_FOO"]}"#,
                "SCMP_ARCH_FOO",
            ),
            ("FILE", r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}"#, "listenerPath"),
        ] {
            let error = read(reference, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    #[allow(deprecated)]
    fn profile_of_the_older_field_counts_where_the_newer_is_empty() {
        let mut context = LinuxContainerSecurityContext {
            seccomp_profile_path: "runtime/default".into(),
            ..with(&[], &[])
        };
        assert!(seccomp(&context).unwrap().is_some());
        context.seccomp_profile_path = "localhost//nonexistent".into();
        assert!(seccomp(&context).unwrap_err().to_string().contains("profile /nonexistent"));
        context.seccomp_profile_path = "strict".into();
        assert!(seccomp(&context).unwrap_err().to_string().contains("\"strict\""));
    }

    #[test]
    fn seccomp_follows_the_profile_and_is_off_when_privileged() {
        let profile = |kind: ProfileType| {
            Some(SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() })
        };
        let mut context =
            LinuxContainerSecurityContext { seccomp: profile(ProfileType::RuntimeDefault), ..with(&[], &[]) };
        assert!(seccomp(&context).unwrap().is_some());
        context.privileged = true;
        assert!(seccomp(&context).unwrap().is_none());
        context =
            LinuxContainerSecurityContext { seccomp: profile(ProfileType::Localhost), ..with(&[], &[]) };
        assert!(seccomp(&context).unwrap_err().to_string().contains("not absolute"));
    }
}
