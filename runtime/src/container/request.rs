//! From a container's specification to the request that has the agent make it.
//!
//! Called by `create`, and by `preparation` for the container of a rehearsal. Pure: it touches neither guest
//! nor host.

use super::resources::linux_resources;
use super::spec::{ContainerSpec, PidNamespace};
use super::{ContainerError, volumes};
use isopod_protocols::agent::{CreateContainerRequest, PidNamespace as AgentPidNamespace};
use oci_spec::runtime::Spec;
use std::path::PathBuf;

/// The request without layers: those are added when they are mapped.
///
/// # Errors
/// A limit that no kernel takes.
pub fn request(id: &str, spec: &ContainerSpec) -> Result<CreateContainerRequest, ContainerError> {
    let (pid_namespace, pid_target) = match &spec.pid_namespace {
        PidNamespace::Container => (AgentPidNamespace::Container, String::new()),
        PidNamespace::Pod => (AgentPidNamespace::Pod, String::new()),
        PidNamespace::Target(target) => (AgentPidNamespace::Target, target.clone()),
    };
    Ok(CreateContainerRequest {
        container_id: id.to_owned(),
        spec: serde_json::to_vec(&complete(id, spec)?).map_err(ContainerError::Encode)?,
        layers: Vec::new(),
        user: Some(spec.user.clone()),
        pid_namespace: pid_namespace.into(),
        pid_target,
        stdin: spec.stdio.stdin,
        terminal: spec.stdio.terminal,
        stdin_once: spec.stdio.stdin_once,
        env: spec.env.clone(),
        volumes: spec.volumes.clone(),
    })
}

/// The OCI specification with what its author leaves to the core. Device rules stay as they are.
fn complete(id: &str, spec: &ContainerSpec) -> Result<Spec, ContainerError> {
    let mut oci = spec.oci.clone();
    let mut linux = oci.linux().clone().unwrap_or_default();
    let mut limits = linux_resources(&spec.resources)?;
    limits.set_devices(linux.resources().as_ref().and_then(|resources| resources.devices().clone()));
    linux.set_resources(Some(limits)).set_cgroups_path(Some(PathBuf::from(format!("/isopod/{id}"))));
    let mut mounts = oci.mounts().clone().unwrap_or_default();
    volumes::insert(&mut mounts, id, &spec.volumes);
    oci.set_linux(Some(linux)).set_mounts(Some(mounts));
    Ok(oci)
}
