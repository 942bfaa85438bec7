//! A node without a kernel's help: its directories in a temporary one, its VMs and networks only in tables, and in each
//! guest an agent that does as it is told by the test.

use async_trait::async_trait;
use isopod_protocols::agent::agent_server::{Agent, AgentServer};
use isopod_protocols::agent::*;
use isopod_runtime::config::Config;
use isopod_runtime::hypervisor::fake::{Connection, FakeHypervisor};
use isopod_runtime::network::{NetworkError, Pod, PodNetwork};
use isopod_runtime::sandbox::{Host, PodNetworks, SandboxEvent, Sandboxes};
use isopod_runtime::scratch::Scratch;
use isopod_runtime::undo::Undo;
use k8s_cri::v1::{PodSandboxConfig, PodSandboxMetadata};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

/// What the test wants to go wrong.
#[derive(Default)]
pub struct Wishes {
    /// Networks are refused after half of their steps.
    pub no_network: AtomicBool,
    /// Networks cannot be torn down.
    pub stuck_network: AtomicBool,
    /// Agents refuse their identity.
    pub no_identity: AtomicBool,
    /// Agents take for ever over their identity.
    pub slow_identity: AtomicBool,
    /// Told when an agent has been asked for its identity.
    pub asked: Notify,
}

impl Wishes {
    pub fn set(flag: &AtomicBool) {
        flag.store(true, Ordering::SeqCst);
    }

    pub fn clear(flag: &AtomicBool) {
        flag.store(false, Ordering::SeqCst);
    }

    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }
}

/// Networks that are only names in a table. Clones share it.
#[derive(Clone, Default)]
pub struct FakeNetworks {
    pub held: Arc<Mutex<BTreeSet<String>>>,
    wishes: Arc<Wishes>,
}

#[async_trait]
impl PodNetworks for FakeNetworks {
    fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn add(&self, pod: &Pod, undo: &mut Undo) -> Result<PodNetwork, NetworkError> {
        self.held.lock().unwrap().insert(pod.sandbox_id.clone());
        let (networks, id) = (self.clone(), pod.sandbox_id.clone());
        undo.push("network", move || async move { networks.remove(&id).await })?;
        tokio::task::yield_now().await;
        if Wishes::is(&self.wishes.no_network) {
            return Err(NetworkError::NoAddress("fake".into()));
        }
        undo.push("tap", || async { Ok::<_, io::Error>(()) })?;
        Ok(PodNetwork {
            netns: "/nowhere".into(),
            addresses: vec!["10.9.8.7".parse().unwrap()],
            interface: Interface { name: "eth0".into(), ..Default::default() },
            tap: File::open("/dev/null").unwrap().into(),
        })
    }

    async fn remove(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        if Wishes::is(&self.wishes.stuck_network) {
            return Err(NetworkError::NoAddress("stuck".into()));
        }
        self.held.lock().unwrap().remove(sandbox_id);
        Ok(())
    }

    fn known(&self) -> Result<Vec<String>, NetworkError> {
        Ok(self.held.lock().unwrap().iter().cloned().collect())
    }
}

/// The agent in every guest.
struct FakeAgent {
    wishes: Arc<Wishes>,
}

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("the fake agent has no containers"))
}

#[async_trait]
impl Agent for FakeAgent {
    async fn prepare(&self, _: Request<PrepareRequest>) -> Answer<PrepareResponse> {
        Ok(Response::new(PrepareResponse {}))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Answer<HelloResponse> {
        assert!(request.into_inner().entropy.len() >= 32, "the protocol promises 32 bytes");
        let kernel_release = "6.12.0-fake\u{1b}[2J".to_owned();
        Ok(Response::new(HelloResponse { agent_version: "1".into(), kernel_release, ..Default::default() }))
    }

    async fn set_up_sandbox(&self, request: Request<SetUpSandboxRequest>) -> Answer<SetUpSandboxResponse> {
        self.wishes.asked.notify_one();
        if Wishes::is(&self.wishes.slow_identity) {
            std::future::pending::<()>().await;
        }
        if Wishes::is(&self.wishes.no_identity) {
            return Err(Status::invalid_argument("no such sysctl: \u{7}kernel.nonsense"));
        }
        let request = request.into_inner();
        assert!(request.scratch.is_some_and(|extent| extent.length > 0));
        Ok(Response::new(SetUpSandboxResponse {}))
    }

    async fn use_processors(&self, _: Request<UseProcessorsRequest>) -> Answer<UseProcessorsResponse> {
        Ok(Response::new(UseProcessorsResponse {}))
    }

    type WatchStream = tokio_stream::Pending<Result<Event, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        Ok(Response::new(tokio_stream::pending()))
    }

    async fn create_container(&self, _: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        absent()
    }
    async fn start_container(&self, _: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        absent()
    }
    async fn update_container(&self, _: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        absent()
    }
    async fn remove_container(&self, _: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        absent()
    }
    async fn start_exec(&self, _: Request<StartExecRequest>) -> Answer<StartExecResponse> {
        absent()
    }
    async fn wait_process(&self, _: Request<WaitProcessRequest>) -> Answer<WaitProcessResponse> {
        absent()
    }
    async fn remove_exec(&self, _: Request<RemoveExecRequest>) -> Answer<RemoveExecResponse> {
        absent()
    }
    async fn signal_process(&self, _: Request<SignalProcessRequest>) -> Answer<SignalProcessResponse> {
        absent()
    }
    async fn resize_terminal(&self, _: Request<ResizeTerminalRequest>) -> Answer<ResizeTerminalResponse> {
        absent()
    }
    async fn stats(&self, _: Request<StatsRequest>) -> Answer<StatsResponse> {
        absent()
    }
}

/// The node.
pub struct FakeNode {
    pub sandboxes: Arc<Sandboxes>,
    pub events: mpsc::Receiver<SandboxEvent>,
    pub hypervisor: Arc<FakeHypervisor>,
    pub networks: FakeNetworks,
    pub wishes: Arc<Wishes>,
    directory: Arc<tempfile::TempDir>,
}

/// Size of scratch disks here, MiB.
const SCRATCH_MIB: u32 = 16;

impl FakeNode {
    pub fn new() -> Self {
        let wishes = Arc::new(Wishes::default());
        let (hypervisor, connections) = FakeHypervisor::with_connections();
        serve_agents(connections, Arc::clone(&wishes));
        let networks = FakeNetworks { wishes: Arc::clone(&wishes), ..Default::default() };
        let directory = Arc::new(tempfile::tempdir().unwrap());
        // What mke2fs would make; its content is of no matter here.
        let scratch = directory.path().join("root/scratch");
        fs::create_dir_all(&scratch).unwrap();
        let template = File::create(scratch.join(format!("template-{SCRATCH_MIB}m"))).unwrap();
        template.set_len(u64::from(SCRATCH_MIB) << 20).unwrap();
        Self::daemon(hypervisor, networks, wishes, directory)
    }

    /// The same node with another daemon: what that one had in memory is gone.
    pub fn restarted(self) -> Self {
        Self::daemon(self.hypervisor, self.networks, self.wishes, self.directory)
    }

    fn daemon(
        hypervisor: Arc<FakeHypervisor>,
        networks: FakeNetworks,
        wishes: Arc<Wishes>,
        directory: Arc<tempfile::TempDir>,
    ) -> Self {
        let mut config = Config::default();
        config.daemon.state_dir = directory.path().join("state");
        config.daemon.root_dir = directory.path().join("root");
        config.vm.scratch_mib = SCRATCH_MIB;
        let host = Host {
            hypervisor: hypervisor.clone(),
            networks: Arc::new(networks.clone()),
            scratch: Arc::new(Scratch::new(config.daemon.root_dir.join("scratch")).unwrap()),
            cgroup_root: directory.path().join("cgroup"),
        };
        let (sandboxes, events) = Sandboxes::new(Arc::new(config), host).unwrap();
        Self { sandboxes, events, hypervisor, networks, wishes, directory }
    }

    /// What there is of pods on this node, in words; nothing where there are none.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.hypervisor.running() > 0 {
            left.push(format!("{} vms", self.hypervisor.running()));
        }
        left.extend(self.networks.held.lock().unwrap().iter().map(|id| format!("network of {id}")));
        for place in ["state/sandboxes", "state/vm", "cgroup", "root/scratch"] {
            left.extend(names(&self.directory.path().join(place)).map(|name| format!("{place}/{name}")));
        }
        left.retain(|name| !name.starts_with("root/scratch/template-"));
        left
    }

    /// Waits until there is nothing left: undoing after a caller left happens behind its back.
    pub async fn nothing_is_left(&self) {
        for _ in 0..500 {
            if self.left().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("left: {:?}", self.left());
    }
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap())
}

fn serve_agents(connections: mpsc::UnboundedReceiver<Connection>, wishes: Arc<Wishes>) {
    let streams = UnboundedReceiverStream::new(connections).map(|(_port, stream)| Ok::<_, io::Error>(stream));
    let agent = AgentServer::new(FakeAgent { wishes });
    tokio::spawn(tonic::transport::Server::builder().add_service(agent).serve_with_incoming(streams));
}

/// A pod's configuration.
pub fn pod(name: &str) -> PodSandboxConfig {
    let metadata = PodSandboxMetadata {
        name: name.to_owned(),
        namespace: "default".into(),
        uid: format!("uid-of-{name}"),
        attempt: 0,
    };
    PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
}
