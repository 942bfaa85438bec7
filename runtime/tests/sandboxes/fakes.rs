//! A node without a kernel's help: its directories in a temporary one, its VMs and networks only in tables, and in each
//! guest an agent that does as it is told by the test.

use crate::hostile_agent::{Attack, Guest};
use async_trait::async_trait;
use isopod_protocols::agent::agent_server::Agent;
use isopod_protocols::agent::*;
use isopod_protocols::vsock::{AGENT_PORT, STDIO_PORT};
use isopod_runtime::config::Config;
use isopod_runtime::container::ContainerSpec;
use isopod_runtime::cri::container_spec;
use isopod_runtime::host_users::HostUsers;
use isopod_runtime::hypervisor::fake::{Connection, FakeHypervisor};
use isopod_runtime::image::ImageConfiguration;
use isopod_runtime::network::{NetworkError, Pod, PodNetwork};
use isopod_runtime::sandbox::{Host, PodName, PodNetworks, SandboxEvents, SandboxSpec, Sandboxes};
use isopod_runtime::scratch::Scratch;
use isopod_runtime::undo::Undo;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::BoxStream;
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
    /// Agents take for ever over the removal of containers.
    pub slow_removal: AtomicBool,
    /// Told when an agent has been asked to remove a container.
    pub removing: Notify,
    /// Connections to guests' streams, all of which break.
    pub streams: AtomicUsize,
    /// Agents make containers, and tell what [`Wishes::tell`] has them tell of these.
    pub containers: AtomicBool,
    /// What the next agent that is given an identity does from then on.
    attack: Mutex<Option<Attack>>,
    watchers: Mutex<Vec<mpsc::UnboundedSender<ContainerState>>>,
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

    /// Has the agent of the next sandbox attack the daemon.
    pub fn attack(&self, attack: Attack) {
        *self.attack.lock().unwrap() = Some(attack);
    }

    /// Has every agent that makes containers tell of one.
    pub fn tell(&self, state: &ContainerState) {
        self.watchers.lock().unwrap().retain(|watcher| watcher.send(state.clone()).is_ok());
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

/// The agent in a guest, as one connection to it sees it.
pub struct FakeAgent {
    wishes: Arc<Wishes>,
    attack: Mutex<Option<Attack>>,
    made: Mutex<Option<String>>,
}

impl FakeAgent {
    /// How it attacks the daemon, if it does.
    pub fn attack(&self) -> Option<Attack> {
        *self.attack.lock().unwrap()
    }

    /// The last container that it made.
    pub fn last_made(&self) -> Option<String> {
        self.made.lock().unwrap().clone()
    }

    /// Whether it makes containers; else it says that it has none.
    fn require_containers(&self) -> Result<(), Status> {
        match Wishes::is(&self.wishes.containers) {
            true => Ok(()),
            false => Err(Status::unimplemented("the fake agent has no containers")),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("the fake agent does not do that"))
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
        *self.attack.lock().unwrap() = self.wishes.attack.lock().unwrap().take();
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

    type WatchStream = BoxStream<Event>;

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let events: BoxStream<Event> = match self.require_containers() {
            Err(_) => Box::pin(tokio_stream::pending()),
            Ok(()) => {
                let (watcher, changes) = mpsc::unbounded_channel();
                self.wishes.watchers.lock().unwrap().push(watcher);
                let changes = UnboundedReceiverStream::new(changes).map(event::Event::Changed);
                let events = tokio_stream::once(event::Event::Snapshot(Snapshot::default())).chain(changes);
                Box::pin(events.map(|event| Ok(Event { event: Some(event) })))
            }
        };
        Ok(Response::new(events))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        self.require_containers()?;
        *self.made.lock().unwrap() = Some(request.into_inner().container_id);
        let groups = if self.attack() == Some(Attack::ManyGroups) { 5000 } else { 1 };
        let user = ResolvedUser { supplemental_groups: (0..groups).collect(), ..Default::default() };
        Ok(Response::new(CreateContainerResponse { user: Some(user) }))
    }
    async fn start_container(&self, _: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        self.require_containers()?;
        if self.attack() == Some(Attack::FailedStarts) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(StartContainerResponse { pid: 7 }))
    }
    async fn update_container(&self, _: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        self.require_containers()?;
        Ok(Response::new(UpdateContainerResponse {}))
    }
    async fn remove_container(&self, _: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        self.require_containers()?;
        self.wishes.removing.notify_one();
        let is_slow = Wishes::is(&self.wishes.slow_removal);
        if is_slow || self.attack() == Some(Attack::Strangers) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(RemoveContainerResponse {}))
    }
    async fn start_exec(&self, _: Request<StartExecRequest>) -> Answer<StartExecResponse> {
        if self.attack() == Some(Attack::SilentExecs) {
            std::future::pending::<()>().await;
        }
        absent()
    }
    async fn wait_process(&self, _: Request<WaitProcessRequest>) -> Answer<WaitProcessResponse> {
        absent()
    }
    async fn remove_exec(&self, _: Request<RemoveExecRequest>) -> Answer<RemoveExecResponse> {
        if self.attack() == Some(Attack::SilentExecs) {
            std::future::pending::<()>().await;
        }
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
    pub events: mpsc::UnboundedReceiver<SandboxEvents>,
    pub hypervisor: Arc<FakeHypervisor>,
    pub networks: FakeNetworks,
    pub wishes: Arc<Wishes>,
    pub config: Arc<Config>,
    pub scratch: Arc<Scratch>,
    pub directory: Arc<tempfile::TempDir>,
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
        let config = Arc::new(config);
        let scratch = Arc::new(Scratch::new(config.daemon.root_dir.join("scratch")).unwrap());
        let host = Host {
            hypervisor: hypervisor.clone(),
            networks: Arc::new(networks.clone()),
            scratch: Arc::clone(&scratch),
            users: HostUsers::open(&config.daemon.state_dir, config.vm.pod_uids()).unwrap(),
            cgroup_root: directory.path().join("cgroup"),
        };
        let (sandboxes, events) = Sandboxes::new(Arc::clone(&config), host).unwrap();
        Self { sandboxes, events, hypervisor, networks, wishes, config, scratch, directory }
    }

    /// What there is of pods on this node, in words; nothing where there are none.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.hypervisor.running() > 0 {
            left.push(format!("{} vms", self.hypervisor.running()));
        }
        left.extend(self.networks.held.lock().unwrap().iter().map(|id| format!("network of {id}")));
        for place in ["state/sandboxes", "state/users", "state/vm", "cgroup", "root/scratch"] {
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

/// Has an agent at the end of each connection. Nobody answers at other ports.
fn serve_agents(mut connections: mpsc::UnboundedReceiver<Connection>, wishes: Arc<Wishes>) {
    tokio::spawn(async move {
        while let Some(Connection { port, stream, .. }) = connections.recv().await {
            if port == STDIO_PORT {
                wishes.streams.fetch_add(1, Ordering::SeqCst);
            }
            if port != AGENT_PORT {
                continue;
            }
            let wishes = Arc::clone(&wishes);
            let agent = Arc::new(FakeAgent { wishes, attack: Mutex::default(), made: Mutex::default() });
            let server = tonic::transport::Server::builder().add_service(Guest::new(agent));
            tokio::spawn(server.serve_with_incoming(tokio_stream::once(Ok::<_, io::Error>(stream))));
        }
    });
}

/// A pod of that name, of which nothing else is asked.
pub fn pod(name: &str) -> SandboxSpec {
    let name = PodName {
        name: name.to_owned(),
        namespace: "default".into(),
        uid: format!("uid-of-{name}"),
        attempt: 0,
    };
    SandboxSpec { name, ..SandboxSpec::default() }
}

/// A container of that name, with nothing asked for but a command, of an image with nothing in it.
pub fn container(name: &str) -> ContainerSpec {
    let mut spec = container_spec::plain(ImageConfiguration::default(), &["sleep"]).unwrap();
    spec.description.name = name.to_owned();
    spec
}
