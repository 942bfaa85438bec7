//! From CreateContainer's message and an image to the specification of a container.
//!
//! ```text
//!   ContainerConfig, SandboxSpec, Image -> container_spec -> ContainerSpec -> container::create
//!                                           oci: process, mounts, security, guest_devices
//!                                           environment, user, volumes
//! ```
//!
//! Called by `create_container`. It must not touch the guest or the host, but for reading a seccomp profile.

mod environment;
mod error;
mod guest_devices;
mod oci;
mod seccomp;
mod seccomp_profile;
mod security;
mod user;
mod volumes;

pub use error::ContainerConfigError;

use super::{resources, signal};
use crate::container::{
    AskedMount, ContainerSpec, Description, ImageNames, LogPath, PidNamespace, Propagation, RootSource,
    Stdio, StdioSink, stop_signal,
};
use crate::image::{Digest, Image, ImageConfiguration, Layer};
use crate::sandbox::SandboxSpec;
use isopod_protocols::cri::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    Mount, MountPropagation, NamespaceMode,
};
use oci::Parts;
use std::path::Path;
use std::sync::Arc;

/// The specification of a container of `image` in a pod.
///
/// # Errors
/// What is wrong or cannot be granted, and what to do.
pub fn container_spec(
    config: ContainerConfig,
    sandbox: &SandboxSpec,
    image: &Image,
) -> Result<ContainerSpec, ContainerConfigError> {
    let parts = Parts { container: &config, hostname: &sandbox.hostname, image: &image.config };
    let (oci, env) = (oci::build(parts)?, oci::environment(parts));
    let default = LinuxContainerSecurityContext::default();
    let context = oci::security_context(&config).unwrap_or(&default);
    let asked = config.linux.as_ref().and_then(|linux| linux.resources.clone());
    Ok(ContainerSpec {
        id: None,
        oci,
        env,
        user: user::user(context, &image.config.user)?,
        pid_namespace: pid_namespace(context)?,
        root: image.layers.iter().map(root_source).collect(),
        volumes: volumes::of_container(&image.config, &config.mounts)?,
        stdio: stdio(&config, sandbox)?,
        stop_signal: stop_signal_of(config.stop_signal, image)?,
        resources: asked.map(resources::from_cri).unwrap_or_default(),
        description: description(config, image)?,
    })
}

/// A container that runs `command`, or where that is empty the one of its image's configuration, and of which
/// nothing else is asked. Its root is empty.
///
/// # Errors
/// What is wrong with the configuration.
pub fn plain(image: ImageConfiguration, command: &[&str]) -> Result<ContainerSpec, ContainerConfigError> {
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "plain".to_owned(), attempt: 0 }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        linux: Some(LinuxContainerConfig::default()),
        ..ContainerConfig::default()
    };
    let id = Digest::of(b"");
    let image = Image { id, repo_digests: Vec::new(), config: Arc::new(image), layers: Vec::new() };
    container_spec(config, &SandboxSpec::default(), &image)
}

fn pid_namespace(context: &LinuxContainerSecurityContext) -> Result<PidNamespace, ContainerConfigError> {
    let namespaces = context.namespace_options.clone().unwrap_or_default();
    match namespaces.pid() {
        NamespaceMode::Pod => Ok(PidNamespace::Pod),
        NamespaceMode::Target => Ok(PidNamespace::Target(namespaces.target_id)),
        NamespaceMode::Container => Ok(PidNamespace::Container),
        NamespaceMode::Node => Err(ContainerConfigError::HostNamespace("hostPID")),
    }
}

fn root_source(layer: &Layer) -> RootSource {
    RootSource::Extent { chain_id: layer.chain_id.to_string(), path: layer.path.clone(), size: layer.size }
}

/// The log's place is below the pod's log directory, and nowhere else.
fn stdio(config: &ContainerConfig, sandbox: &SandboxSpec) -> Result<Stdio, ContainerConfigError> {
    let sink = match &sandbox.log_directory {
        Some(directory) if !config.log_path.is_empty() => {
            let path = LogPath::new(directory, Path::new(&config.log_path));
            let path = path.ok_or_else(|| ContainerConfigError::BadLogPath(config.log_path.clone()))?;
            StdioSink::CriLog(path)
        }
        _ => StdioSink::Discard,
    };
    Ok(Stdio { stdin: config.stdin, stdin_once: config.stdin_once, terminal: config.tty, sink })
}

/// What stops a container: the pod's word, else the image's, else SIGTERM.
fn stop_signal_of(asked: i32, image: &Image) -> Result<i32, ContainerConfigError> {
    match signal::from_cri(asked) {
        Some(signal) => Ok(signal),
        None if asked == 0 => {
            Ok(stop_signal::parse(&image.config.stop_signal).unwrap_or(stop_signal::DEFAULT))
        }
        None => Err(ContainerConfigError::BadSignal(asked)),
    }
}

fn description(config: ContainerConfig, image: &Image) -> Result<Description, ContainerConfigError> {
    let image = image_names(&config, image);
    let metadata = config.metadata.filter(|m| !m.name.is_empty()).ok_or(ContainerConfigError::NoName)?;
    Ok(Description {
        name: metadata.name,
        attempt: metadata.attempt,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        image,
        mounts: config.mounts.into_iter().map(asked_mount).collect(),
    })
}

fn image_names(config: &ContainerConfig, image: &Image) -> ImageNames {
    let spec = config.image.clone().unwrap_or_default();
    let asked = [spec.user_specified_image, spec.image].into_iter().find(|name| !name.is_empty());
    let id = image.id.to_string();
    ImageNames {
        asked: asked.unwrap_or_else(|| id.clone()),
        reference: image.repo_digests.first().cloned().unwrap_or_else(|| id.clone()),
        id,
    }
}

fn asked_mount(mount: Mount) -> AskedMount {
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => Propagation::Private,
        MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    AskedMount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        image: mount.image.map(|image| image.image).unwrap_or_default(),
        image_sub_path: mount.image_sub_path,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
    }
}

/// It as a part of a status.
pub fn mount_of(asked: AskedMount) -> Mount {
    let propagation = match asked.propagation {
        Propagation::Private => MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => MountPropagation::PropagationBidirectional,
    };
    let image = Some(asked.image).filter(|image| !image.is_empty());
    Mount {
        container_path: asked.container_path,
        host_path: asked.host_path,
        image: image.map(|image| ImageSpec { image, ..ImageSpec::default() }),
        image_sub_path: asked.image_sub_path,
        readonly: asked.readonly,
        recursive_read_only: asked.recursive_read_only,
        propagation: propagation.into(),
        ..Mount::default()
    }
}

#[cfg(test)]
mod tests;
