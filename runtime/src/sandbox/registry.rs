//! The table of all sandboxes: in memory for every look-up and list, on disk for a restarted daemon.

use super::turn::Turns;
use super::validate::Plan;
use super::{
    Guest, PodNetworks, Record, Sandbox, SandboxError, SandboxEvent, SandboxEvents, SandboxSpec,
    SandboxSpecError, State,
};
use crate::cgroup::PodCgroup;
use crate::config::Config;
use crate::host_users::HostUsers;
use crate::hypervisor::{Hypervisor, most_vcpus};
use crate::id::{Mismatch, new_id, resolve};
use crate::listing;
use crate::scratch::Scratch;
use crate::store::{Collection, Durability, Loaded};
use crate::wall_clock::now_ns;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::available_parallelism;
use tokio::sync::mpsc;

/// Events of one sandbox that may wait for `container` before its agent's stream is held up. Each is at most
/// a snapshot of a full pod, some 30 KiB.
const EVENT_BACKLOG: usize = 8;

/// Pods that are made at the same time, for each processor: one can use it while the other waits for a plugin or a disk.
const AT_ONCE_PER_CPU: usize = 2;

/// What sandboxes are made of: real on a node, fake in tests.
pub struct Host {
    /// Makes VMs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Makes networks.
    pub networks: Arc<dyn PodNetworks>,
    /// Makes scratch disks.
    pub scratch: Arc<Scratch>,
    /// Allocates the users of VMMs.
    pub users: HostUsers,
    /// Where cgroup v2 is mounted.
    pub cgroup_root: PathBuf,
}

/// All sandboxes of the node, and what makes and ends them.
pub struct Sandboxes {
    pub(super) config: Arc<Config>,
    pub(super) host: Host,
    /// Takes one queue for each sandbox that begins to have events: no guest has a say in their number.
    queues: mpsc::UnboundedSender<SandboxEvents>,
    /// Each pod that is being made holds one, see [`super::turn`].
    pub(super) turns: Turns,
    records: Collection<Record>,
    table: RwLock<BTreeMap<String, Arc<Sandbox>>>,
}

impl Sandboxes {
    /// An empty table, and the receiver of a queue of events for each sandbox, which `container` reads.
    ///
    /// # Errors
    /// Where a directory cannot be made.
    pub fn new(
        config: Arc<Config>,
        host: Host,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<SandboxEvents>), SandboxError> {
        let (queues, receiver) = mpsc::unbounded_channel();
        let records = Collection::open(config.daemon.state_dir.join("sandboxes"), Durability::Process)?;
        let turns = AT_ONCE_PER_CPU * available_parallelism().map_or(1, NonZero::get);
        let turns = Turns::new(turns);
        let table = RwLock::default();
        Ok((Arc::new(Self { config, host, queues, turns, records, table }), receiver))
    }

    /// The sandbox of that id, or of the only id that begins so.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::Ambiguous`].
    pub fn get(&self, id: &str) -> Result<Arc<Sandbox>, SandboxError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        match resolve(id, table.keys().map(String::as_str)) {
            Ok(found) => Ok(Arc::clone(&table[found])),
            Err(Mismatch::None) => Err(SandboxError::NotFound(id.to_owned())),
            Err(Mismatch::Ambiguous) => Err(SandboxError::Ambiguous(id.to_owned())),
        }
    }

    /// All sandboxes that have been made, sorted by id.
    pub fn list(&self) -> Vec<Arc<Sandbox>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.values().filter(|sandbox| sandbox.state() != State::Starting).cloned().collect()
    }

    /// Whether a pod could get a network now.
    ///
    /// # Errors
    /// What is missing.
    pub fn network_ready(&self) -> Result<(), SandboxError> {
        Ok(self.host.networks.ready()?)
    }

    /// Directory below which each VM has one for its sockets and log.
    pub(super) fn vm_directories(&self) -> PathBuf {
        self.config.daemon.state_dir.join("vm")
    }

    /// Takes a name, an id and a user id for a new sandbox, and records that it is being made.
    pub(super) fn reserve(&self, plan: &Plan) -> Result<Arc<Sandbox>, SandboxError> {
        let mut table = self.write();
        let name = &plan.spec.name;
        if let Some(taken) = table.values().find(|other| other.spec.name == *name) {
            return Err(SandboxError::NameTaken { name: name.to_string(), id: taken.id.clone() });
        }
        let random = || {
            new_id().map_err(|source| SandboxError::File {
                id: name.to_string(),
                what: "random device",
                path: "/dev/urandom".into(),
                source,
            })
        };
        let id = plan.spec.id.clone().map_or_else(random, Ok)?;
        if table.contains_key(&id) {
            return Err(SandboxSpecError::Id(id).into());
        }
        refuse_heavy(&table, &plan.spec)?;
        let record = Record {
            version: Record::VERSION,
            state: State::Starting,
            spec: SandboxSpec { id: None, ..plan.spec.clone() },
            created_at_ns: now_ns(),
            cgroup: PodCgroup::new(&self.host.cgroup_root, &plan.spec.cgroup_parent, &id)?,
            directory: self.vm_directories().join(&id),
            uid: self.allocate_user(&id)?,
            vm: None,
            guest: Guest::default(),
            size: (plan.size.vcpus, plan.size.memory_mib),
            max_vcpus: most_vcpus(&plan.vm, plan.size.vcpus),
            addresses: Vec::new(),
        };
        if let Err(error) = self.records.put(&id, &record) {
            self.host.users.release(record.uid, &id)?;
            return Err(error.into());
        }
        let sandbox = Arc::new(Sandbox::new(id.clone(), record));
        table.insert(id, Arc::clone(&sandbox));
        Ok(sandbox)
    }

    fn allocate_user(&self, id: &str) -> Result<u32, SandboxError> {
        let users = &self.host.users;
        users.allocate(id)?.ok_or_else(|| SandboxError::NoUid(users.count()))
    }

    /// Changes a sandbox's record, on disk first: what was once answered is never taken back.
    pub(super) fn change(
        &self,
        sandbox: &Sandbox,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), SandboxError> {
        let mut record = sandbox.record();
        let mut changed = record.clone();
        change(&mut changed);
        self.records.put(&sandbox.id, &changed)?;
        *record = changed;
        Ok(())
    }

    /// Forgets a sandbox, its name, its record and its user.
    pub(super) fn forget(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let mut table = self.write();
        self.records.remove(&sandbox.id)?;
        // After the record, which names it: a daemon that is killed in between leaves an id that the next one
        // frees.
        self.host.users.release(sandbox.record().uid, &sandbox.id)?;
        table.remove(&sandbox.id);
        Ok(())
    }

    /// Reads all records of an earlier daemon into the table.
    pub(super) fn load(&self) -> Result<Loaded<Record>, SandboxError> {
        let loaded = self.records.load()?;
        let mut table = self.write();
        for (id, record) in &loaded.documents {
            table.insert(id.clone(), Arc::new(Sandbox::new(id.clone(), record.clone())));
        }
        Ok(loaded)
    }

    /// A new queue for a sandbox's events, the other end of which goes to `container`.
    pub(super) fn open_queue(&self, sandbox: &Sandbox) -> mpsc::Sender<SandboxEvent> {
        let (events, queue) = mpsc::channel(EVENT_BACKLOG);
        // Nobody takes it only when the daemon goes down.
        let _ = self.queues.send(SandboxEvents { sandbox_id: sandbox.id.clone(), queue });
        events
    }

    /// Every sandbox, those that are being made too.
    pub(super) fn all(&self) -> Vec<Arc<Sandbox>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Arc<Sandbox>>> {
        // Nothing that holds it can panic half-way through a change.
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a pod takes in the list of all.
fn listed(spec: &SandboxSpec) -> usize {
    let name = [&spec.name.name, &spec.name.namespace, &spec.name.uid].map(String::len);
    let entries = listing::length(spec.labels.iter().chain(&spec.annotations));
    name.into_iter().sum::<usize>() + entries + 4 * listing::ENTRY
}

/// Refuses a pod whose labels and annotations would not fit the list of all.
fn refuse_heavy(table: &BTreeMap<String, Arc<Sandbox>>, spec: &SandboxSpec) -> Result<(), SandboxError> {
    /// Twice what Kubernetes lets a pod's annotations be.
    const POD: usize = 512 << 10;
    let own = listed(spec);
    let all = own + table.values().map(|other| listed(&other.spec)).sum::<usize>();
    match listing::exceeded([(own, POD, "it"), (all, listing::MOST, "all pods")]) {
        None => Ok(()),
        Some((bytes, most, what)) => {
            Err(SandboxError::TooHeavy { pod: spec.name.to_string(), what, bytes, most })
        }
    }
}
