//! What there is of templates on the host: for each a record, a directory for sockets and log, and a cgroup,
//! all of its name.
//!
//! ```text
//!   STATE_DIR/templates/NAME.json   STATE_DIR/templates/NAME/   /sys/fs/cgroup/isopod-template-NAME/
//! ```
//!
//! Used by `build`, which makes them, and [`super::Templates`], which has them cleared. The directory is made
//! first and removed last: whose directory is there, and no record that holds good, was left by a daemon that
//! was killed, and goes.

use super::super::process::Process;
use super::build::BuildError;
use super::holder::{Template, TemplateRecord};
use crate::cgroup::{self, CgroupError, PodCgroup};
use crate::id::is_id;
use crate::store::{Collection, Durability, StoreError};
use crate::undo::Undo;
use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The share of processors of what comes after all others (`cpu.weight`).
const LAST: u32 = 1;

/// That of a group nobody has changed.
pub const USUAL: u32 = 100;

/// Records, directories and cgroups of one node's templates.
pub struct TemplateStore {
    directory: PathBuf,
    cgroup_root: Option<PathBuf>,
    records: Collection<TemplateRecord>,
}

impl TemplateStore {
    /// Those below a state directory and a cgroup; without one, which is in tests only, holders live where
    /// the daemon does.
    pub fn open(state_dir: &Path, cgroup_root: Option<PathBuf>) -> Result<Self, StoreError> {
        let directory = state_dir.join("templates");
        let records = Collection::open(&directory, Durability::Process)?;
        Ok(Self { directory, cgroup_root, records })
    }

    /// Makes a directory.
    pub fn make_directory(&self, name: &str, undo: &mut Undo) -> Result<PathBuf, BuildError> {
        let path = self.directory.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| BuildError::File { what: "directory", path: path.clone(), source })?;
        let removed = path.clone();
        undo.push("directory", || async move { remove_directory(&removed) })?;
        Ok(path)
    }

    /// Makes the cgroup, with the usual share of processors: see [`Self::give_way`].
    pub fn make_cgroup(&self, name: &str, undo: &mut Undo) -> Result<Option<PathBuf>, BuildError> {
        let Some(cgroup) = self.cgroup(name) else { return Ok(None) };
        cgroup.create()?;
        let path = cgroup.path().to_owned();
        undo.push("cgroup", || async move { cgroup.remove().await })?;
        Ok(Some(path))
    }

    /// Gives what runs for a template, beside its holder that sleeps, another share of processors.
    pub fn weigh(&self, name: &str, weight: u32) {
        if let Some(cgroup) = self.cgroup(name) {
            cgroup.weigh(weight);
        }
    }

    /// Has it come last when processors are given out, as a template must not hold pods up.
    pub fn give_way(&self, name: &str) {
        self.weigh(name, LAST);
    }

    /// Gives it the usual share while a process starts in it. Between its making and its program's first
    /// instruction such a process holds the daemon's descriptors, and a thread of the daemon waits: at the
    /// share of what comes last that took seconds on a busy node, and the next daemon could not bind the
    /// socket of one that was killed then.
    pub fn come_as_usual(&self, name: &str) {
        self.weigh(name, USUAL);
    }

    /// Where the sockets and the log of its VMs are.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Its cgroup; `None` in tests only.
    pub fn cgroup(&self, name: &str) -> Option<PodCgroup> {
        self.cgroup_root.as_deref().map(|root| PodCgroup::of_template(root, name))
    }

    /// Writes the record.
    pub fn record(&self, template: &Template, undo: &mut Undo) -> Result<(), BuildError> {
        self.update(template)?;
        let (records, name) = (self.records.clone(), template.name.clone());
        Ok(undo.push("record", || async move { records.remove(&name) })?)
    }

    /// Writes the record as the template is now.
    pub fn update(&self, template: &Template) -> Result<(), BuildError> {
        let failed =
            |source| BuildError::File { what: "memory", path: self.directory.join(&template.name), source };
        Ok(self.records.put(&template.name, &template.record().map_err(failed)?)?)
    }

    /// Removes all that is left of one. What cannot be removed is told, and tried again by the next daemon.
    pub async fn clear(&self, name: &str) {
        if let Err(error) = self.try_clear(name).await {
            tracing::error!(template = name, %error, "what is left of a template cannot be removed");
        }
    }

    async fn try_clear(&self, name: &str) -> Result<(), ClearError> {
        if let Some(cgroup) = self.cgroup(name) {
            cgroup.remove().await?;
        }
        self.records.remove(name)?;
        let path = self.directory.join(name);
        remove_directory(&path).map_err(|source| ClearError::Directory { path, source })
    }

    /// Adopts what an earlier daemon left: the templates that are whole are answered, all else is removed.
    pub async fn adopt(&self) -> Result<Vec<Arc<Template>>, StoreError> {
        let mut templates = Vec::new();
        for (name, record) in self.records.load()?.documents {
            match Template::adopt(&name, record) {
                Ok(Some(template)) => templates.push(Arc::new(template)),
                Ok(None) => tracing::warn!(template = name, "its holder ended while no daemon ran"),
                Err(error) => tracing::error!(template = name, %error, "template cannot be adopted"),
            }
        }
        let whole: HashSet<&str> = templates.iter().map(|template| template.name.as_str()).collect();
        let names = names_in(&self.directory).unwrap_or_else(|error| {
            tracing::error!(directory = %self.directory.display(), %error, "templates cannot be listed");
            HashSet::new()
        });
        for name in names.iter().filter(|name| !whole.contains(name.as_str())) {
            tracing::info!(template = name, "left by an earlier daemon, and removed");
            self.clear(name).await;
        }
        self.remove_empty_cgroups(&whole);
        let holders: HashSet<i32> = templates.iter().map(|template| template.holder_pid()).collect();
        for template in &templates {
            self.end_rehearsal(&template.name, &holders).await;
        }
        Ok(templates)
    }

    /// Ends the VM in which a template was being rehearsed when the earlier daemon ended: nobody asks it for
    /// what it found.
    async fn end_rehearsal(&self, name: &str, holders: &HashSet<i32>) {
        let Some(cgroup) = self.cgroup(name) else { return };
        let processes = || {
            cgroup.processes().unwrap_or_else(|error| {
                tracing::error!(template = name, %error, "a vm that rehearsed may be left");
                Vec::new()
            })
        };
        for pid in processes().into_iter().filter(|pid| !holders.contains(pid)) {
            match Process::open(pid) {
                // Looked at once more: the number may have become another process's before it was opened.
                Ok(Some(process)) if processes().contains(&pid) => {
                    tracing::info!(template = name, pid, "vm that rehearsed for an earlier daemon is ended");
                    process.kill().await;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(template = name, pid, %error, "vm that rehearsed is left");
                }
            }
        }
    }

    /// Cgroups whose directory is gone. One that is in use is another daemon's, and stays.
    fn remove_empty_cgroups(&self, whole: &HashSet<&str>) {
        let Some(root) = &self.cgroup_root else { return };
        let found = cgroup::find_templates(root).unwrap_or_else(|error| {
            tracing::error!(%error, "cgroups of templates cannot be listed");
            Vec::new()
        });
        for (_, cgroup) in found.iter().filter(|(name, _)| !whole.contains(name.as_str())) {
            let removed = fs::remove_dir(cgroup.path()).is_ok();
            tracing::info!(cgroup = %cgroup.path().display(), removed, "cgroup of no template");
        }
    }
}

/// Why a template's rest stays.
#[derive(Debug, thiserror::Error)]
enum ClearError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
}

/// The records below a state directory, for those who only look. One that cannot be read is left out.
pub fn recorded(state_dir: &Path) -> Vec<TemplateRecord> {
    let Ok(entries) = fs::read_dir(state_dir.join("templates")) else { return Vec::new() };
    let documents = entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "json"));
    documents.filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()).collect()
}

/// Names of templates that have a directory or a record, or had one.
fn names_in(directory: &Path) -> io::Result<HashSet<String>> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        names.extend(
            path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| is_id(stem)).map(str::to_owned),
        );
    }
    Ok(names)
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
