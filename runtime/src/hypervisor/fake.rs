//! A hypervisor without machines: for tests of everything above it. A guest port is whatever a test puts there.
//!
//! Used by unit tests of `sandbox` and `container`. It must never be reachable from the daemon's configuration.

use super::{Booted, Extent, Hypervisor, HypervisorError, Vm, VmHandle, VmRecord, VmSpec};
use crate::lock::lock;
use crate::undo::Undo;
use async_trait::async_trait;
use isopod_protocols::vmm::{ErrorKind, Stats};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// What a test's guest gets.
pub struct Connection {
    /// The VM's id.
    pub vm: String,
    /// The guest's port.
    pub port: u32,
    /// The guest's end.
    pub stream: UnixStream,
}

/// Answers connections to the guests of one fake hypervisor.
type Guest = Arc<dyn Fn(Connection) + Send + Sync>;

/// Makes fake VMs, and remembers those that run.
pub struct FakeHypervisor {
    guest: Guest,
    running: Mutex<HashMap<String, Arc<FakeVm>>>,
    next_pid: Mutex<i32>,
}

impl FakeHypervisor {
    /// `guest` is called with every connection that is made to a port of a guest.
    pub fn new(guest: impl Fn(Connection) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { guest: Arc::new(guest), running: Mutex::default(), next_pid: Mutex::new(1) })
    }

    /// A fake whose guests hand all connections to one receiver, in order.
    pub fn with_connections() -> (Arc<Self>, mpsc::UnboundedReceiver<Connection>) {
        let (send, receive) = mpsc::unbounded_channel();
        // A test that dropped the receiver wants its guests to answer nobody.
        let hypervisor = Self::new(move |connection| drop(send.send(connection)));
        (hypervisor, receive)
    }

    /// The VM of that id, if it runs.
    pub fn vm(&self, id: &str) -> Option<Arc<FakeVm>> {
        lock(&self.running).get(id).filter(|vm| !vm.is_ended()).cloned()
    }

    /// How many VMs run.
    pub fn running(&self) -> usize {
        lock(&self.running).values().filter(|vm| !vm.is_ended()).count()
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn boot(&self, spec: &VmSpec, undo: &mut Undo) -> Result<Booted, HypervisorError> {
        let pid = {
            let mut next = lock(&self.next_pid);
            *next += 1;
            *next
        };
        let directory = spec.directory.clone();
        let record = VmRecord { pid, started_at_ticks: 0, directory, template: None };
        let vm = Arc::new(FakeVm {
            id: spec.id.clone(),
            record: record.clone(),
            guest: Arc::clone(&self.guest),
            extents: Mutex::default(),
            memory_mib: AtomicU32::new(spec.boot_memory_mib),
            resizing: tokio::sync::Mutex::default(),
            answering: tokio::sync::Mutex::default(),
            ended: watch::Sender::new(false),
        });
        lock(&self.running).insert(spec.id.clone(), Arc::clone(&vm));
        let killed = Arc::clone(&vm);
        undo.push("vmm", move || async move {
            killed.kill().await;
            Ok::<_, io::Error>(())
        })?;
        Ok(Booted { vm, record, agent: None })
    }

    async fn adopt(&self, id: &str, record: &VmRecord) -> Result<Option<VmHandle>, HypervisorError> {
        Ok(self.vm(id).filter(|vm| vm.record == *record).map(|vm| vm as VmHandle))
    }
}

/// A VM that is only a table of extents.
pub struct FakeVm {
    id: String,
    record: VmRecord,
    guest: Guest,
    extents: Mutex<BTreeMap<u64, (u64, bool)>>,
    memory_mib: AtomicU32,
    /// While a test holds it, its size does not change.
    pub resizing: tokio::sync::Mutex<()>,
    /// While a test holds it, its VMM answers no question for its counters.
    pub answering: tokio::sync::Mutex<()>,
    ended: watch::Sender<bool>,
}

impl FakeVm {
    /// The extents by offset: length, and whether they are read-only.
    pub fn extents(&self) -> BTreeMap<u64, (u64, bool)> {
        lock(&self.extents).clone()
    }

    /// Ends the VM as a crash would.
    pub fn crash(&self) {
        self.ended.send_replace(true);
    }

    fn is_ended(&self) -> bool {
        *self.ended.borrow()
    }

    fn refused(&self, request: &'static str, message: &str) -> HypervisorError {
        let (id, message) = (self.id.clone(), message.to_owned());
        HypervisorError::Refused { id, request, kind: ErrorKind::State, message }
    }
}

#[async_trait]
impl Vm for FakeVm {
    async fn attach_extent(&self, _file: File, length: u64, read_only: bool) -> Result<u64, HypervisorError> {
        if self.is_ended() {
            return Err(self.refused("attach_extent", "the vm has ended"));
        }
        let mut extents = lock(&self.extents);
        let end = extents.last_key_value().map_or(0, |(offset, (length, _))| offset + length);
        let offset = end.next_multiple_of(1 << 20);
        extents.insert(offset, (length, read_only));
        Ok(offset)
    }

    async fn detach_extent(&self, offset: u64) -> Result<(), HypervisorError> {
        match lock(&self.extents).remove(&offset) {
            Some(_) => Ok(()),
            None => Err(self.refused("detach_extent", "no extent there")),
        }
    }

    async fn extents(&self) -> Result<Vec<Extent>, HypervisorError> {
        let extents = lock(&self.extents);
        Ok(extents.iter().map(|(&offset, &(_, read_only))| Extent { offset, read_only }).collect())
    }

    async fn resize(&self, memory_mib: u32) -> Result<(), HypervisorError> {
        let _turn = self.resizing.lock().await;
        self.memory_mib.store(memory_mib, Ordering::Relaxed);
        Ok(())
    }

    async fn add_vcpus(&self, _vcpus: u8) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn attach_tap(&self, _tap: OwnedFd) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn connect_vsock(&self, port: u32) -> Result<UnixStream, HypervisorError> {
        let failed = |source| HypervisorError::Vsock { id: self.id.clone(), port, source };
        if self.is_ended() {
            return Err(failed(io::ErrorKind::ConnectionRefused.into()));
        }
        let (host, stream) = UnixStream::pair().map_err(failed)?;
        (self.guest)(Connection { vm: self.id.clone(), port, stream });
        Ok(host)
    }

    async fn stats(&self) -> Result<Stats, HypervisorError> {
        let _turn = self.answering.lock().await;
        let memory_bytes = u64::from(self.memory_mib.load(Ordering::Relaxed)) << 20;
        Ok(Stats { memory_bytes, ..Stats::default() })
    }

    async fn console(&self) -> Result<String, HypervisorError> {
        Ok("fake console".to_owned())
    }

    async fn kill(&self) {
        self.crash();
    }

    async fn ended(&self) {
        // The sender lives as long as `self`, so the only way out is the value.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}
