//! The sandbox: all that the agent knows, and its set-up.
//!
//! Only the server has it whole: every other module is given the part that it works on.
//!
//! ```text
//!   unset --SetUpSandbox--> set        for the rest of the VM's life
//!     ^          |
//!     +--undone--+ a step fails
//! ```

use crate::clock;
use crate::console;
use crate::container::Containers;
use crate::identity::{Identity, IdentityError};
use crate::network::netlink::{self, NetworkError};
use crate::stats::Walks;
use crate::storage::{Storage, StorageError};
use crate::sys::{self, entropy::MAX_ENTROPY};
use crate::sysctl::SysctlError;
use isopod_protocols::agent::{
    HelloRequest, HelloResponse, PrepareResponse, SetUpSandboxRequest, SetUpSandboxResponse,
};
use isopod_protocols::guest;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Where the kernel keeps the id of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Fewest random bytes of a `Hello`.
const MIN_ENTROPY: usize = 32;

/// Room for the files that containers share; they may write to them.
const FILES_OPTIONS: &str = "mode=0755,size=16m";

/// The state of the guest. One per VM, held by the server.
#[derive(Default)]
pub struct Sandbox {
    /// What exists of each container: processes, streams, exits.
    pub containers: Arc<Containers>,
    /// Layers and roots; absent until the sandbox is set up.
    storage: OnceLock<Arc<Storage>>,
    /// What containers wrote, as last counted.
    pub walks: Arc<Walks>,
    /// Held for the length of a set-up.
    set_up: tokio::sync::Mutex<()>,
}

/// Why the sandbox could not be set up, or used.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A call came before SetUpSandbox.
    #[error("the sandbox is not set up: call SetUpSandbox first")]
    NotSetUp,
    /// SetUpSandbox came again.
    #[error("the sandbox is set up already; a VM is one sandbox for all its life")]
    AlreadySetUp,
    /// The request cannot be an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Not the random bytes that `Hello` needs.
    #[error("entropy: {0} bytes, give {MIN_ENTROPY} to {MAX_ENTROPY}")]
    Entropy(usize),
    /// A setting was refused by the kernel.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Scratch could not be mounted.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A step of the kernel's failed.
    #[error("cannot {0}")]
    Kernel(&'static str, #[source] io::Error),
    /// A file of the guest cannot be read or written.
    #[error("{path} cannot be read or written")]
    Path {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Sandbox {
    /// Layers and roots of containers. Its calls block: see [`Storage`].
    pub fn storage(&self) -> Result<&Arc<Storage>, SandboxError> {
        self.storage.get().ok_or(SandboxError::NotSetUp)
    }
}

/// Answers `Prepare`: reads this program's file, so that clones have in memory what they will start
/// containers with. It waits for the disk where it stands, as a template has nothing else to do, and a thread
/// for it would be cloned too.
pub fn prepare() -> Result<PrepareResponse, SandboxError> {
    const PROGRAM: &str = "/proc/self/exe";
    let read = File::open(PROGRAM).and_then(|mut program| io::copy(&mut program, &mut io::sink()));
    read.map_err(at(PROGRAM))?;
    Ok(PrepareResponse {})
}

/// Answers `Hello`. The boot id is made when it is first read, so the entropy goes first.
pub fn hello(request: &HelloRequest) -> Result<HelloResponse, SandboxError> {
    let entropy = request.entropy.as_slice();
    if !(MIN_ENTROPY..=MAX_ENTROPY).contains(&entropy.len()) {
        return Err(SandboxError::Entropy(entropy.len()));
    }
    sys::entropy::add(entropy).map_err(|e| SandboxError::Kernel("add entropy", e))?;
    let boot_id = fs::read_to_string(BOOT_ID).map_err(at(BOOT_ID))?;
    Ok(HelloResponse {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        boot_id: boot_id.trim().to_owned(),
        uptime_ns: u64::try_from(sys::kernel::since_boot().as_nanos()).unwrap_or(u64::MAX),
    })
}

/// Answers `SetUpSandbox`. All of it is applied, or none; only the clock stays set.
pub async fn set_up(
    sandbox: &Sandbox,
    request: SetUpSandboxRequest,
) -> Result<SetUpSandboxResponse, SandboxError> {
    let _alone = sandbox.set_up.lock().await;
    if sandbox.storage.get().is_some() {
        return Err(SandboxError::AlreadySetUp);
    }
    let identity = Identity::parse(request)?;
    match apply(&identity).await {
        Ok(storage) => {
            sandbox.storage.set(Arc::new(storage)).expect("it was empty and the lock is held");
            // A console then tells whose guest it is.
            console::info!("guest of sandbox {}", identity.sandbox_id);
            Ok(SetUpSandboxResponse {})
        }
        Err(error) => {
            undo(&identity).await;
            Err(error)
        }
    }
}

/// The steps of a set-up, none of which blocks for longer than a mount. What they made, [`undo`] takes back.
async fn apply(identity: &Identity) -> Result<Storage, SandboxError> {
    clock::set(identity.realtime).map_err(|e| SandboxError::Kernel("set the clock", e.into()))?;
    rustix::system::sethostname(identity.hostname.as_bytes())
        .map_err(|e| SandboxError::Kernel("set the host name", e.into()))?;
    write_files(identity)?;
    netlink::apply(identity.link.as_ref()).await?;
    // After the network: a setting may name the interface.
    for sysctl in &identity.sysctls {
        sysctl.apply()?;
    }
    Ok(Storage::set_up(identity.scratch)?)
}

async fn undo(identity: &Identity) {
    Storage::undo_set_up();
    netlink::reset(identity.link.as_ref()).await;
    for target in [guest::SHM, guest::SANDBOX_DIR] {
        let _ = unmount(target, UnmountFlags::NOFOLLOW);
    }
}

/// The files and the shared memory that every container of the sandbox mounts.
fn write_files(identity: &Identity) -> Result<(), SandboxError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_tmpfs(guest::SANDBOX_DIR, flags, FILES_OPTIONS)?;
    mount_tmpfs(guest::SHM, flags, &format!("mode=1777,size={}", identity.shm_bytes))?;
    let hostname = format!("{}\n", identity.hostname);
    replace_file(guest::HOSTNAME, hostname.as_bytes())?;
    replace_file(guest::HOSTS, &identity.hosts)?;
    replace_file(guest::RESOLV_CONF, &identity.resolv_conf)
}

fn mount_tmpfs(target: &str, flags: MountFlags, options: &str) -> Result<(), SandboxError> {
    fs::create_dir_all(target).map_err(at(target))?;
    let options = CString::new(options).expect("options are our own words and numbers");
    mount("tmpfs", target, "tmpfs", flags, options.as_c_str()).map_err(|errno| at(target)(errno.into()))
}

/// Gives a file its content in one step: who reads it sees the old content or the new, never a part.
fn replace_file(path: &str, content: &[u8]) -> Result<(), SandboxError> {
    let new = format!("{path}.new");
    fs::write(&new, content).map_err(at(&new))?;
    fs::rename(&new, Path::new(path)).map_err(at(path))
}

fn at(path: &str) -> impl FnOnce(io::Error) -> SandboxError + use<> {
    let path = path.to_owned();
    move |source| SandboxError::Path { path, source }
}
