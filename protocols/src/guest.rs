//! Paths in the guest that runtime and agent both name: the agent makes them, the runtime's OCI mounts point
//! at them. And how much of something there is at most: the agent refuses to make more, the runtime to take
//! more from an agent that its guest has taken over.

/// Directory on a tmpfs that holds what containers of the sandbox share.
pub const SANDBOX_DIR: &str = "/run/isopod/sandbox";

/// `/etc/hostname` of every container.
pub const HOSTNAME: &str = "/run/isopod/sandbox/hostname";

/// `/etc/hosts` of every container.
pub const HOSTS: &str = "/run/isopod/sandbox/hosts";

/// `/etc/resolv.conf` of every container.
pub const RESOLV_CONF: &str = "/run/isopod/sandbox/resolv.conf";

/// `/dev/shm` of the sandbox, a tmpfs that its containers share.
pub const SHM: &str = "/run/isopod/sandbox/shm";

/// Where the pod's scratch is mounted: what containers write.
pub const SCRATCH: &str = "/run/isopod/scratch";

/// Directory of a container's volumes, those of its image; each is in it by its number in `CreateContainerRequest.volumes`.
pub fn volumes(container_id: &str) -> String {
    format!("{SCRATCH}/{container_id}/volumes")
}

/// Most volumes of one container. The runtime refuses an image with more; the agent, a request.
pub const MAX_VOLUMES: usize = 256;

/// Most containers of a sandbox; one that has exited counts until it is removed. So all their states fit into
/// one short message.
pub const MAX_CONTAINERS: usize = 256;

/// Most supplemental groups of a container's first process. Linux takes 65536, and every record of the
/// container holds them.
pub const MAX_GROUPS: usize = 4096;

/// Block device of the pod's extent disk.
pub const EXTENT_DISK: &str = "/dev/vda";

/// Name of the pod's network interface in the guest.
pub const INTERFACE: &str = "eth0";
