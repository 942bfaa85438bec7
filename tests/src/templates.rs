//! The templates that the node's daemon keeps: as Status shows them, as pods' records name them, and what they hold on the
//! node. `template` makes one by hand, without a daemon.

use crate::cri::{Cri, Pod, wait_for, wait_within};
use crate::node;
use crate::{daemon, held};
use anyhow::{Context, Result, bail};
use isopod_protocols::cri::StatusRequest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Where the daemon keeps their records, sockets and logs.
pub const DIRECTORY: &str = "/run/isopod/templates";

/// One as Status shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Shown {
    /// Who may share it; empty: all of the node.
    pub scope: String,
    /// `building`, `ready` or `failed`.
    pub state: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// Its name, where it is ready.
    pub name: Option<String>,
    /// `waiting`, `running`, `failed` or `done`, where it is ready.
    pub rehearsal: Option<String>,
    /// Why the last rehearsal failed.
    pub rehearsal_reason: Option<String>,
    /// Pages that every clone is given in advance.
    pub working_set_pages: Option<u64>,
    /// Clones that live.
    pub clones_alive: u64,
    /// Clones that this daemon made or found again.
    pub clones_made: u64,
    /// Of these, clones that were not given all of those pages.
    pub clones_unpopulated: u64,
}

impl Shown {
    /// Whether it may be cloned, and it is known what its clones write.
    pub fn is_whole(&self) -> bool {
        self.state == "ready" && self.rehearsal.as_deref() == Some("done")
    }
}

/// How long a template may take with its rehearsal: it comes last on a node that has much to do, and a
/// rehearsal that failed is tried again after a pause.
const LIMIT: Duration = Duration::from_secs(400);

/// All that Status shows.
pub fn shown(cri: &Cri) -> Result<Vec<Shown>> {
    let status = cri.wait(cri.service().status(StatusRequest { verbose: true }))?;
    let templates = status.info.get("templates").context("Status shows no templates")?;
    serde_json::from_str(templates).with_context(|| templates.clone())
}

/// Waits until that many are ready and rehearsed, and none is being made; answers them.
pub fn wait_ready(cri: &Cri, count: usize) -> Result<Vec<Shown>> {
    let what = format!("{count} templates");
    let ready = wait_within(LIMIT, &what, || {
        let all = shown(cri)?;
        Ok((all.len() == count && all.iter().all(Shown::is_whole)).then_some(all))
    });
    ready.with_context(|| format!("there are {:#?}", shown(cri)))
}

/// Waits for the one template of the node; answers its name.
pub fn wait_for_one(cri: &Cri) -> Result<String> {
    let ready = wait_ready(cri, 1)?;
    ready.into_iter().find_map(|one| one.name).context("a template that is ready has a name")
}

/// Waits until pods begin the way they are meant to, so that a case goes one way only: as clones, or by booting.
pub fn settled(cri: &Cri) -> Result<()> {
    if node::cold() { Ok(()) } else { wait_for_one(cri).map(drop) }
}

/// Name of the template that a pod's VM is a clone of, by the pod's record; `None` where it booted.
pub fn of(pod: &Pod) -> Result<Option<String>> {
    let path = format!("/run/isopod/sandboxes/{}.json", pod.id);
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let record: serde_json::Value = serde_json::from_str(&text).with_context(|| path.clone())?;
    let vm = record.get("vm").filter(|vm| vm.is_object()).with_context(|| format!("{path} has no VM"))?;
    Ok(vm.get("template").and_then(|name| name.as_str()).map(str::to_owned))
}

/// The processes that hold templates.
pub fn holders() -> Result<Vec<Pid>> {
    processes("isopod-template")
}

/// The one process that holds a template.
pub fn holder() -> Result<Pid> {
    match holders()?.as_slice() {
        [holder] => Ok(*holder),
        others => bail!("not one holder of a template but {others:?}"),
    }
}

/// Ends the daemon and all templates, so that the next daemon finds none.
pub fn lose_all() -> Result<()> {
    daemon::kill()?;
    for holder in holders()? {
        kill(holder, Signal::SIGKILL)?;
    }
    wait_for("holders to end", || Ok(holders()?.is_empty().then_some(())))
}

/// One line for each thing that templates hold now, while there are no pods.
pub fn held() -> Result<BTreeSet<String>> {
    let mut held = BTreeSet::new();
    for program in ["isopod-template", "isopod-vmm"] {
        held.extend(processes(program)?.iter().map(|pid| format!("process {program} {pid}")));
    }
    for path in paths_in(DIRECTORY)? {
        held.insert(format!("state {path}"));
    }
    let cgroups = paths_in("/sys/fs/cgroup")?.into_iter().filter(|path| path.contains("/isopod-template-"));
    held.extend(cgroups.map(|path| format!("cgroup {path}")));
    Ok(held)
}

/// Templates hold nothing, or will not in five seconds.
pub fn nothing_held(when: &str) -> Result<()> {
    for _ in 0..50 {
        if held()?.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("left of a template {when}: {:#?}", held()?)
}

/// The template of that name is held, and nothing of any other, or will not be in five seconds.
pub fn only_held(name: &str, when: &str) -> Result<()> {
    let of_it = [
        format!("cgroup /sys/fs/cgroup/isopod-template-{name}"),
        format!("process isopod-template {}", holder()?),
        format!("state {DIRECTORY}/{name}"),
        format!("state {DIRECTORY}/{name}.json"),
    ];
    let wanted = BTreeSet::from(of_it);
    for _ in 0..50 {
        if held()? == wanted {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("{when}, not what template {name} holds: {:#?}", held()?)
}

fn paths_in(directory: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(Path::new(directory)).context(directory.to_owned())?;
    entries.map(|entry| Ok(entry?.path().display().to_string())).collect()
}

/// Processes by the name that they were started with.
fn processes(name: &str) -> Result<Vec<Pid>> {
    held::started_as(|words| words.first() == Some(&name.as_bytes()))
}
