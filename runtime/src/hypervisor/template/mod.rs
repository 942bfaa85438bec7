//! Templates: guests that were booted once, and saved before they had any identity. Pods' VMs are clones of one.
//!
//! `cloning` asks for a template at each pod's start, `serve` at the daemon's; nobody waits for one to be
//! made. What a template may be cloned for is in its [`Key`]. This module must not know pods, and a template
//! must never know one.
//!
//! # States
//!
//! ```text
//!            asked for                 made
//!   (none) -----------> Building -----------------> Ready -----> (none)
//!                        |    ^                       |     displaced by another one, made from files that were
//!                failed  |    | asked for,            |     replaced since, or of a configuration that is no more
//!                        v    | after a pause         |
//!                        Failed <---------------------+
//!                                 its holder ended, or its clones would not run
//! ```
//!
//! A clone that does not run is no proof against its template: a pod may have limits in which no VMM runs,
//! and a tenant chooses them. The template goes where the VMM finds its files at fault, or where several pods
//! in a row could boot and not be cloned.
//!
//! A pause is a minute after the first failure and doubles up to an hour; at its end the template is asked
//! for again, whether a pod wants it or not. A template that was lost after it had served is made anew at
//! once. One that is Ready is [`rehearsal`]'s until it is known what its clones write.

mod build;
mod clones;
mod cloning;
mod holder;
mod key;
mod rehearsal;
mod rehearse;
mod sealed;
mod starts;
mod status;
mod store;
mod table;
#[cfg(test)]
mod tests;

pub use build::{BuildError, Preparation};
pub use clones::Lease;
pub use cloning::CloningHypervisor;
pub use holder::{Template, TemplateRecord};
pub use key::{Key, Recipe};
pub use starts::Starting;
pub use status::{TemplateStatus, age_seconds};
pub use store::recorded;

use super::HypervisorError;
use crate::id::new_id;
use crate::lock::lock;
use crate::store::StoreError;
use build::{Builder, Make};
use rehearsal::Pauses;
use starts::Starts;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use store::TemplateStore;
use table::Table;
use tokio::time::sleep_until;

/// All templates of the node.
pub struct Templates {
    maker: Box<dyn Make>,
    store: Arc<TemplateStore>,
    table: Mutex<Table>,
    /// Held by what makes or rehearses one: pods come first, so at most one processor is taken.
    turn: tokio::sync::Mutex<()>,
    misses: AtomicU64,
    starts: Starts,
    pauses: Pauses,
}

impl Templates {
    /// Adopts what an earlier daemon with this state directory left. `uid` is the host user of what makes and
    /// keeps templates; cgroups are made below `cgroup_root`.
    ///
    /// # Errors
    /// Where the records cannot be read: what goes wrong with one template only loses that one.
    pub async fn open(
        state_dir: &Path,
        cgroup_root: PathBuf,
        uid: u32,
        preparation: Box<dyn Preparation>,
    ) -> Result<Arc<Self>, StoreError> {
        let store = Arc::new(TemplateStore::open(state_dir, Some(cgroup_root))?);
        let maker = Builder { store: Arc::clone(&store), uid, preparation };
        let templates = Self::new(Box::new(maker), store, Table::default(), Pauses::default());
        templates.adopt().await?;
        Ok(templates)
    }

    fn new(maker: Box<dyn Make>, store: Arc<TemplateStore>, table: Table, pauses: Pauses) -> Arc<Self> {
        let (table, turn, misses) = (Mutex::new(table), tokio::sync::Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { maker, store, table, turn, misses, starts: Starts::default(), pauses })
    }

    async fn adopt(self: &Arc<Self>) -> Result<(), StoreError> {
        for template in self.store.adopt().await? {
            tracing::info!(template = template.name, built_from = template.built_from, "template is adopted");
            let replaced = self.table().adopt(Arc::clone(&template), Instant::now());
            self.rehearse(&template);
            self.watch(template);
            self.discard(replaced);
        }
        Ok(())
    }

    /// Forgets the templates of recipes that nobody follows any more.
    pub fn keep_only(self: &Arc<Self>, wanted: impl Fn(&Recipe) -> bool) {
        let unwanted = self.table().keep_only(wanted);
        self.discard(unwanted);
    }

    /// Has a recipe's template made in the background, unless it is there, or failed a short while ago.
    pub fn ask_for(self: &Arc<Self>, recipe: &Recipe) {
        match recipe.key() {
            Ok(key) => self.ask(&key),
            Err(error) => tracing::warn!(%error, "no template is made: a file of it cannot be looked at"),
        }
    }

    /// As [`Self::ask_for`], with the files as somebody found them.
    pub fn ask(self: &Arc<Self>, key: &Key) {
        let begun = self.table().begin(key, Instant::now());
        let Some(displaced) = begun else { return };
        self.discard(displaced);
        let (templates, key) = (Arc::clone(self), key.clone());
        tokio::spawn(async move { templates.make(&key).await });
    }

    async fn make(self: &Arc<Self>, key: &Key) {
        let turn = self.turn.lock().await;
        let begun = Instant::now();
        let made = match new_id() {
            Ok(name) => self.maker.make(&name, key).await.map_err(|error| error.to_string()),
            Err(error) => Err(format!("/dev/urandom: {error}")),
        };
        drop(turn);
        let built_from = key.built_from();
        match &made {
            Ok(template) => {
                let took_ms = begun.elapsed().as_millis();
                tracing::info!(template = template.name, built_from, took_ms, "template is ready");
            }
            Err(error) => tracing::warn!(built_from, error, "no template: pods boot until one is made"),
        }
        let ready = made.as_ref().ok().cloned();
        let gone = self.table().settle(&key.hash(), made, Instant::now());
        self.discard(gone);
        match ready {
            // Only now: an end that is seen before the template is in the table would be lost.
            Some(template) => {
                self.rehearse(&template);
                self.watch(template);
            }
            None => self.ask_later(key),
        }
    }

    /// Asks once more for what failed when its pause is over: on a node that starts no more pods nobody else
    /// would.
    fn ask_later(self: &Arc<Self>, key: &Key) {
        let Some(until) = self.table().paused_until(&key.hash(), Instant::now()) else { return };
        let (templates, recipe) = (Arc::clone(self), key.recipe.clone());
        tokio::spawn(async move {
            sleep_until(until.into()).await;
            templates.ask_for(&recipe);
        });
    }

    /// The template of that key, if it is there.
    pub fn ready(&self, key: &Key) -> Option<Arc<Template>> {
        self.table().ready(&key.hash(), Instant::now())
    }

    /// A pod's VM is being started until the answer is dropped: work that can wait does.
    pub fn pod_starts(&self) -> Starting {
        self.starts.begin()
    }

    /// A VM that could have been a clone had to boot.
    pub fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// A clone of that template runs; it is counted until the answer is dropped.
    pub fn cloned(&self, template: &Template) -> Lease {
        self.table().proved(&template.name);
        template.lease()
    }

    /// Counts a clone that an earlier daemon made; `None` where its template is no more.
    pub fn clone_of(&self, name: &str) -> Option<Lease> {
        self.table().named(name).map(|template| template.lease())
    }

    /// A clone of that template did not run. The template goes at once if it is at fault.
    pub fn clone_failed(self: &Arc<Self>, template: &Template, error: &HypervisorError) {
        if error.is_of_template() {
            self.lose(&template.name, format!("a clone failed: {error}"));
            self.ask_later(&template.key);
        }
    }

    /// The VM `id` booted after its clone of that template had failed: what kept the clone from running was
    /// not the pod alone. The template goes when that has happened to several VMs in a row.
    pub fn booted_instead(self: &Arc<Self>, template: &Template, id: &str, error: &HypervisorError) {
        let lost = self.table().booted_instead(&template.name, id, error, Instant::now());
        if let Some(lost) = lost {
            tracing::warn!(template = lost.name, %error, "clones of several pods failed: the template goes");
            self.discard(vec![lost]);
            self.ask_later(&template.key);
        }
    }

    /// All templates, those that are being made or failed too.
    pub fn list(&self) -> Vec<TemplateStatus> {
        self.table().entries().map(TemplateStatus::new).collect()
    }

    /// VMs that could have been clones and had to boot, since the daemon started.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Waits for the end of a template's holder in the background. One that ended by itself is made anew.
    fn watch(self: &Arc<Self>, template: Arc<Template>) {
        let templates = Arc::clone(self);
        tokio::spawn(async move {
            template.ended().await;
            if templates.lose(&template.name, "its holder ended".to_owned()) {
                tracing::warn!(template = template.name, "its holder ended: the template is made anew");
                templates.ask_for(&template.key.recipe);
                templates.ask_later(&template.key);
            }
        });
    }

    /// Takes a template out of the table; answers whether it was there.
    fn lose(self: &Arc<Self>, name: &str, reason: String) -> bool {
        let lost = self.table().lose(name, reason, Instant::now());
        let there = lost.is_some();
        self.discard(lost.into_iter().collect());
        there
    }

    /// Ends templates that are in the table no more, in the background. Their clones run on.
    fn discard(self: &Arc<Self>, gone: Vec<Arc<Template>>) {
        for template in gone {
            let templates = Arc::clone(self);
            tokio::spawn(async move {
                tracing::info!(template = template.name, built_from = template.built_from, "template goes");
                template.kill().await;
                templates.store.clear(&template.name).await;
            });
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}
