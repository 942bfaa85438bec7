//! The table of all sandboxes: in memory for every look-up and list, on disk for a restarted daemon.

use super::{Record, Sandbox, SandboxError, SandboxEvent, State};
use crate::config::Config;
use crate::hypervisor::Hypervisor;
use crate::id::{Mismatch, resolve};
use crate::store::{Collection, Durability};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::mpsc;

/// Events that may wait for `container` before the agents' streams are held up.
const EVENT_BACKLOG: usize = 256;

/// All sandboxes of the node, and what makes and ends them.
#[expect(dead_code, reason = "the operations that use them come next")]
pub struct Sandboxes {
    pub(super) config: Arc<Config>,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) events: mpsc::Sender<SandboxEvent>,
    records: Collection<Record>,
    table: RwLock<BTreeMap<String, Arc<Sandbox>>>,
}

impl Sandboxes {
    /// An empty table, and the receiver of all sandboxes' events, which `container` reads.
    ///
    /// # Errors
    /// Where the directory of records cannot be made.
    pub fn new(
        config: Arc<Config>,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<SandboxEvent>), SandboxError> {
        let (events, receiver) = mpsc::channel(EVENT_BACKLOG);
        let records = Collection::open(config.daemon.state_dir.join("sandboxes"), Durability::Process)?;
        let table = RwLock::default();
        Ok((Arc::new(Self { config, hypervisor, events, records, table }), receiver))
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
}
