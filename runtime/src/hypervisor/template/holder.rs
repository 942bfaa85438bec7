//! A template that is made, and the process that keeps it: a jailed sleeper with the two files at descriptors 3 and 4, so
//! that they outlive the daemon. A later one finds it by its record, and opens them through `/proc`.
//!
//! Used by `build` and `store`. The holder's end is the template's: what there is to see of it is gone then.

use super::super::HypervisorError;
use super::super::pages;
use super::super::process::{Process, Start};
use super::super::vm::Snapshot;
use super::clones::{Clones, Lease};
use super::key::Key;
use super::rehearsal::Rehearsal;
use super::sealed::Sealed;
use crate::lock::lock;
use crate::oom_score;
use crate::wall_clock::now_ns;
use isopod_protocols::vmm::PageRange;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Descriptors of a holder.
const MEMORY: i32 = 3;
const STATE: i32 = 4;

/// What pods' VMs are cloned from.
pub struct Template {
    /// Its name: that of its record, its directory and its cgroup.
    pub name: String,
    /// What it was made from.
    pub key: Key,
    /// The same, as its state has it.
    pub built_from: String,
    /// When, in nanoseconds since the epoch.
    pub built_at_ns: i64,
    /// The guest's memory.
    pub memory: Sealed,
    /// Processors and devices.
    pub state: Sealed,
    /// What every clone writes, as far as that is known.
    rehearsal: Mutex<Rehearsal>,
    holder: Process,
    clones: Arc<Clones>,
}

/// What a later daemon needs to find it, one document each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// Process of the holder.
    pub pid: i32,
    /// When that process began, in clock ticks since the machine's boot.
    pub started_at_ticks: u64,
    /// What it was made from.
    pub key: Key,
    /// The same, as its state has it.
    pub built_from: String,
    /// When, in nanoseconds since the epoch.
    pub built_at_ns: i64,
    /// Memory it took when it was made, bytes.
    pub memory_bytes: u64,
    /// What every clone writes; left out as long as no rehearsal has found it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub working_set: Vec<PageRange>,
}

/// Starts the process that keeps the two files: the VMM's program, which jails itself and then only sleeps.
pub async fn start(
    vmm: &Path,
    uid: u32,
    cgroup: Option<&Path>,
    log: BorrowedFd<'_>,
    (memory, state): (&Sealed, &Sealed),
) -> Result<Process, HypervisorError> {
    let id = uid.to_string();
    Process::start(&Start {
        program: vmm,
        // The name is what tells it from VMMs in lists of processes.
        words: &["isopod-template", "--hold", "--uid", &id, "--gid", &id, "--largest-file", "0"],
        log,
        descriptors: &[memory.as_fd(), state.as_fd()],
        cgroup,
        oom_score: oom_score::USUAL,
    })
    .await
}

impl Template {
    /// A template that `holder` keeps from now on.
    pub fn new(name: &str, key: &Key, memory: Sealed, state: Sealed, holder: Process) -> Self {
        Self {
            name: name.to_owned(),
            key: key.clone(),
            built_from: key.built_from(),
            built_at_ns: now_ns(),
            memory,
            state,
            rehearsal: Mutex::new(Rehearsal::Waiting),
            holder,
            clones: Arc::default(),
        }
    }

    /// Takes over the template of a record, which an earlier daemon made; `None` where it is no more, or is
    /// not what the record says.
    pub fn adopt(name: &str, record: TemplateRecord) -> io::Result<Option<Self>> {
        let look = || Process::adopt(record.pid, record.started_at_ticks);
        let Some(holder) = look()? else { return Ok(None) };
        let file = |number| Sealed::open(Path::new(&format!("/proc/{}/fd/{number}", record.pid)));
        let (memory, state) = (file(MEMORY)?, file(STATE)?);
        let wanted = record.key.memory_bytes();
        // Once more: the files were opened by number, and the holder may have ended meanwhile. And where an update has changed
        // what a key is made of, the state says what no key says any more.
        let same =
            look()?.is_some() && memory.len()? == wanted && record.built_from == record.key.built_from();
        if same {
            // That of an earlier version's holder is its daemon's.
            oom_score::set(record.pid, oom_score::USUAL, || matches!(look(), Ok(Some(_))));
        }
        let TemplateRecord { key, built_from, built_at_ns, mut working_set, .. } = record;
        if !pages::are_possible(&working_set, wanted) {
            tracing::warn!(template = name, "recorded working set is not possible: it is rehearsed again");
            working_set.clear();
        }
        let (name, clones) = (name.to_owned(), Arc::default());
        let rehearsal = Mutex::new(Rehearsal::recorded(working_set));
        let found = Self { name, key, built_from, built_at_ns, memory, state, rehearsal, holder, clones };
        Ok(same.then_some(found))
    }

    /// What [`Self::adopt`] needs.
    pub fn record(&self) -> io::Result<TemplateRecord> {
        Ok(TemplateRecord {
            pid: self.holder.pid,
            started_at_ticks: self.holder.started_at_ticks,
            key: self.key.clone(),
            built_from: self.built_from.clone(),
            built_at_ns: self.built_at_ns,
            memory_bytes: self.memory_bytes()?,
            working_set: self.working_set().to_vec(),
        })
    }

    /// Notes what a rehearsal has come to.
    pub fn set_rehearsal(&self, rehearsal: Rehearsal) {
        *lock(&self.rehearsal) = rehearsal;
    }

    /// What its rehearsals have come to until now.
    pub fn rehearsal(&self) -> Rehearsal {
        lock(&self.rehearsal).clone()
    }

    /// What every clone writes, in rising order; empty where that is not known.
    pub fn working_set(&self) -> Arc<[PageRange]> {
        match self.rehearsal() {
            Rehearsal::Done(pages) => pages,
            _ => Arc::default(),
        }
    }

    /// What its clones are restored from.
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            built_from: &self.built_from,
            shape: self.key.recipe.boot.shape(),
            memory: self.memory.as_fd(),
            state: self.state.as_fd(),
        }
    }

    /// Process of its holder.
    pub fn holder_pid(&self) -> i32 {
        self.holder.pid
    }

    /// Memory that it takes, bytes: memory and state.
    pub fn memory_bytes(&self) -> io::Result<u64> {
        Ok(self.memory.memory_bytes()? + self.state.memory_bytes()?)
    }

    /// Its clones, counted.
    pub fn clones(&self) -> &Clones {
        &self.clones
    }

    /// Counts a clone until the answer is dropped.
    pub fn lease(&self) -> Lease {
        Lease::new(Arc::clone(&self.clones))
    }

    /// Waits for the end of its holder.
    pub async fn ended(&self) {
        self.holder.ended().await;
    }

    /// Kills its holder, and waits for its end. Clones that run are not touched: they have mapped what they need.
    pub async fn kill(&self) {
        self.holder.kill().await;
    }
}
