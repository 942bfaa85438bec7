//! What guests do before pods are made of them: a template gets ready, and one clone of it rehearses a pod's life.
//!
//! ```text
//!   prepare    Prepare
//!   rehearse   Hello -> SetUpSandbox -> CreateContainer -> StartContainer, which is to fail
//! ```
//!
//! Called by `hypervisor` for templates, through [`Preparation`]. The rehearsal's pod has the usual scratch disk, a network that
//! leads nowhere, and the guest's own root for an image, of which no command is run: no pod and no tenant has a part in it.

use crate::agent_client::{AgentClient, AgentError, ENTROPY};
use crate::container::{ContainerError, ContainerSpec, PidNamespace, request};
use crate::hypervisor::template::Preparation;
use crate::hypervisor::{HypervisorError, VmHandle};
use crate::id::fill_random;
use crate::scratch::{Scratch, ScratchError};
use crate::wall_clock::now_ns;
use async_trait::async_trait;
use isopod_protocols::agent::{
    Address, CreateContainerRequest, Extent, Interface, Route, SetUpSandboxRequest, StartContainerRequest,
};
use std::error::Error;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

/// The rehearsal's pod and container.
const NAME: &str = "rehearsal";

/// A command that every image has and none can run.
pub const NO_COMMAND: &str = "/";

/// Why the pod of a rehearsal could not be made.
#[derive(Debug, thiserror::Error)]
enum RehearsedPodError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    File(#[from] io::Error),
}

/// The agents' side of making templates.
pub struct Agents {
    /// Where disks come from.
    pub scratch: Arc<Scratch>,
    /// Size of one in MiB.
    pub scratch_mib: u32,
    /// The rehearsal's container, which runs [`NO_COMMAND`], specified as those of pods are.
    pub container: ContainerSpec,
}

#[async_trait]
impl Preparation for Agents {
    fn largest_file(&self) -> u64 {
        u64::from(self.scratch_mib) << 20
    }

    async fn prepare(
        &self,
        id: &str,
        vm: VmHandle,
        patience: Duration,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        // The client goes with this call, and its connection with it.
        Ok(AgentClient::new(id, vm).with_patience(patience).prepare().await?)
    }

    async fn rehearse(
        &self,
        id: &str,
        vm: VmHandle,
        agent: UnixStream,
        root_image: File,
        patience: Duration,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let agent = AgentClient::connected(id, VmHandle::clone(&vm), Some(agent)).with_patience(patience);
        Ok(self.live(id, vm, agent, root_image).await?)
    }
}

impl Agents {
    async fn live(
        &self,
        id: &str,
        vm: VmHandle,
        agent: AgentClient,
        root_image: File,
    ) -> Result<(), RehearsedPodError> {
        let mut entropy = [0; ENTROPY];
        fill_random(&mut entropy)?;
        agent.hello(entropy).await?;

        let disk = self.scratch.disk(id, self.scratch_mib).await?;
        let offset = vm.attach_extent(disk.file()?, disk.length, false).await?;
        agent.set_up_sandbox(identity(Extent { offset, length: disk.length })).await?;

        let length = root_image.metadata()?.len().next_multiple_of(512);
        let offset = vm.attach_extent(root_image, length, true).await?;
        agent.create_container(container(&self.container, Extent { offset, length })?).await?;
        let start = StartContainerRequest { container_id: NAME.to_owned() };
        match agent.start_container(start).await {
            // A directory is no command.
            Err(AgentError::Refused { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// As a pod has it, of addresses that are for documents only (RFC 5737).
fn identity(scratch: Extent) -> SetUpSandboxRequest {
    let address = Address { address: "192.0.2.2/24".to_owned(), prefix_route: true, ..Address::default() };
    let route = Route {
        destination: "0.0.0.0/0".to_owned(),
        gateway: "192.0.2.1".to_owned(),
        // RT_TABLE_MAIN, RTN_UNICAST, RTPROT_BOOT
        table: 254,
        kind: 1,
        protocol: 3,
        ..Route::default()
    };
    let interface = Interface {
        name: "eth0".to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        mtu: 1500,
        addresses: vec![address],
        routes: vec![route],
        ..Interface::default()
    };
    SetUpSandboxRequest {
        sandbox_id: NAME.to_owned(),
        hostname: NAME.to_owned(),
        hosts: b"127.0.0.1\tlocalhost\n192.0.2.2\trehearsal\n".to_vec(),
        resolv_conf: b"nameserver 192.0.2.1\n".to_vec(),
        interface: Some(interface),
        realtime_ns: now_ns(),
        scratch: Some(scratch),
        ..SetUpSandboxRequest::default()
    }
}

fn container(spec: &ContainerSpec, layer: Extent) -> Result<CreateContainerRequest, RehearsedPodError> {
    let mut spec = ContainerSpec { pid_namespace: PidNamespace::Container, ..spec.clone() };
    // The guest's own root has links where an image has files to be mounted over.
    let mounts = spec.oci.mounts().iter().flatten().filter(|mount| !mount.destination().starts_with("/etc"));
    let mounts = mounts.cloned().collect();
    spec.oci.set_mounts(Some(mounts));
    Ok(CreateContainerRequest { layers: vec![layer], ..request(NAME, &spec)? })
}
