//! From what the CRI and the image say to the OCI runtime spec that the agent applies.
//!
//! Called by `container_spec`. It must not touch the guest or the host, but for reading a seccomp profile.
//! What a VM pod cannot have is refused here, with the reason. `container` adds limits and volumes.
//!
//! Source: OCI runtime specification 1.2, CRI v1.

use super::{ContainerConfigError, environment, guest_devices, security, volumes};
use crate::image::ImageConfiguration;
use isopod_protocols::cri::{
    ContainerConfig, LinuxContainerSecurityContext, Mount as CriMount, MountPropagation,
};
use isopod_protocols::guest;
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Root, Spec,
    get_default_readonly_paths,
};
use std::path::PathBuf;

/// `PATH` where neither image nor pod sets one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a spec is made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The container's configuration.
    pub container: &'a ContainerConfig,
    /// Host name of its pod; may be empty.
    pub hostname: &'a str,
    /// The configuration of its image.
    pub image: &'a ImageConfiguration,
}

/// The spec of a container, without its [`environment()`], its limits and its image's volumes. The agent adds
/// root path, resolved user and the pid namespace's path.
///
/// # Errors
/// Names the field, and what to do.
pub fn build(parts: Parts<'_>) -> Result<Spec, ContainerConfigError> {
    let default = LinuxContainerSecurityContext::default();
    let context = security_context(parts.container).unwrap_or(&default);
    security::refuse_impossible(context)?;
    if let Some(device) = parts.container.devices.first() {
        return Err(ContainerConfigError::Impossible {
            what: format!("host device {:?}", device.host_path),
            instead: "remove it, or use a runtime class that shares the host's kernel",
        });
    }

    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(context.readonly_rootfs));

    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned())
        .set_root(Some(root))
        .set_hostname(None)
        .set_mounts(Some(mounts(parts, context)?))
        .set_process(Some(process(parts, context)?))
        .set_linux(Some(linux(context)?));
    Ok(spec)
}

/// The security context of a container, where it has one.
pub fn security_context(container: &ContainerConfig) -> Option<&LinuxContainerSecurityContext> {
    container.linux.as_ref()?.security_context.as_ref()
}

fn process(
    parts: Parts<'_>,
    context: &LinuxContainerSecurityContext,
) -> Result<Process, ContainerConfigError> {
    let image_dir = Some(parts.image.working_dir.clone()).filter(|dir| !dir.is_empty());
    let own_dir = Some(parts.container.working_dir.clone()).filter(|dir| !dir.is_empty());
    let directory = PathBuf::from(own_dir.or(image_dir).unwrap_or_else(|| "/".to_owned()));
    if !directory.is_absolute() {
        let reason = format!("{} is not an absolute path", directory.display());
        return Err(ContainerConfigError::Invalid { field: "working_dir", reason });
    }
    let resources = parts.container.linux.as_ref().and_then(|l| l.resources.as_ref());
    let score = resources.map(|r| r.oom_score_adj.clamp(-1000, 1000) as i32);

    let mut process = Process::default();
    process
        .set_terminal(Some(parts.container.tty))
        .set_args(Some(arguments(parts)?))
        .set_env(None)
        .set_cwd(directory)
        .set_capabilities(Some(security::capabilities(context)?))
        .set_no_new_privileges(Some(context.no_new_privs))
        .set_rlimits(None)
        .set_oom_score_adj(score);
    Ok(process)
}

/// The CRI's `command` replaces the image's entrypoint and its `args` the image's command; a command of the
/// pod's also does away with the image's arguments.
fn arguments(parts: Parts<'_>) -> Result<Vec<String>, ContainerConfigError> {
    let (mut command, mut args) = (parts.container.command.clone(), parts.container.args.clone());
    if command.is_empty() {
        command.clone_from(&parts.image.entrypoint);
        if args.is_empty() {
            args.clone_from(&parts.image.cmd);
        }
    }
    command.append(&mut args);
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        _ => {
            let name = parts.container.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
            Err(ContainerConfigError::NoCommand(name))
        }
    }
}

/// The environment of the container's processes. Beside the spec, as JSON has no place for bytes that are not
/// UTF-8.
pub fn environment(parts: Parts<'_>) -> Vec<Vec<u8>> {
    let mut defaults = vec![DEFAULT_PATH.as_bytes().to_vec()];
    if parts.container.tty {
        defaults.push(b"TERM=xterm".to_vec());
    }
    if !parts.hostname.is_empty() {
        defaults.push(format!("HOSTNAME={}", parts.hostname).into_bytes());
    }
    let image = parts.image.env.iter().cloned().map(String::into_bytes);
    let pod = parts.container.envs.iter().map(|e| [e.key.as_bytes(), b"=", &e.value].concat());
    environment::merge(defaults, image.chain(pod))
}

fn linux(context: &LinuxContainerSecurityContext) -> Result<Linux, ContainerConfigError> {
    let namespaces = [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Cgroup];
    let namespaces = namespaces.map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(None);
        namespace
    });
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(guest_devices::rules(context.privileged)));
    let (masked, readonly) = if context.privileged {
        (Vec::new(), Vec::new())
    } else if context.masked_paths.is_empty() && context.readonly_paths.is_empty() {
        // crictl leaves them empty; kubelet always fills them unless the pod asked for an unmasked /proc.
        (security::masked_paths(), get_default_readonly_paths())
    } else {
        (context.masked_paths.clone(), context.readonly_paths.clone())
    };

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.to_vec()))
        .set_resources(Some(resources))
        .set_devices(context.privileged.then(guest_devices::of_privileged))
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(readonly))
        .set_sysctl(None)
        .set_seccomp(security::seccomp(context)?);
    Ok(linux)
}

/// One entry of a spec's mounts.
fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|&o| o.to_owned()).collect()));
    mount
}

/// The kernel's file systems first, then files.
fn mounts(
    parts: Parts<'_>,
    context: &LinuxContainerSecurityContext,
) -> Result<Vec<Mount>, ContainerConfigError> {
    parts.container.mounts.iter().try_for_each(refuse_mount)?;
    let mut mounts = kernel_file_systems(context);
    mounts.extend(files(parts, context));
    Ok(mounts)
}

fn kernel_file_systems(context: &LinuxContainerSecurityContext) -> Vec<Mount> {
    // Every privilege over the guest's kernel is the pod's own affair: it has no other tenants.
    let kernel = if context.privileged { "rw" } else { "ro" };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "bind", guest::SHM, &["rbind", "rw"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", kernel]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", kernel]),
    ]
}

/// The pod's files that every container has, but those that a mount of its own replaces.
fn files(parts: Parts<'_>, context: &LinuxContainerSecurityContext) -> Vec<Mount> {
    let root = if context.readonly_rootfs { "ro" } else { "rw" };
    let files = [
        ("/etc/hostname", guest::HOSTNAME),
        ("/etc/hosts", guest::HOSTS),
        ("/etc/resolv.conf", guest::RESOLV_CONF),
    ];
    let own = |destination: &str| {
        parts.container.mounts.iter().any(|m| volumes::clean(&m.container_path) == destination)
    };
    let files = files.into_iter().filter(|(destination, _)| !own(destination));
    files
        .map(|(destination, source)| mount(destination, "bind", source, &["rbind", "rprivate", root]))
        .collect()
}

/// No wish for a mount of the host's can be granted yet; what can never be is told apart from what will be.
fn refuse_mount(mount: &CriMount) -> Result<(), ContainerConfigError> {
    if mount.propagation() == MountPropagation::PropagationBidirectional {
        return Err(ContainerConfigError::Impossible {
            what: format!("bidirectional propagation of {:?}", mount.host_path),
            instead: "the guest has a kernel of its own; use None or HostToContainer",
        });
    }
    if mount.image.as_ref().is_some_and(|i| !i.image.is_empty()) {
        return Err(ContainerConfigError::NotYet {
            what: format!("an image volume at {:?}", mount.container_path),
            instead: "copy what is needed into the container's own image",
        });
    }
    Err(ContainerConfigError::NotYet {
        what: format!("mounting the host's {:?} at {:?}", mount.host_path, mount.container_path),
        instead: "remove the volume, or use a runtime class that shares the host's kernel",
    })
}
