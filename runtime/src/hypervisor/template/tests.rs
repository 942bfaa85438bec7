//! Templates without VMs: real sealed files and real holders, which a test's maker makes of nothing.

use super::build::{BuildError, Make};
use super::holder::Template;
use super::key::{Key, Recipe};
use super::rehearsal::{Pauses, Rehearsal};
use super::rehearse::RehearsalError;
use super::sealed::{Sealed, new_file};
use super::store::TemplateStore;
use super::table::Table;
use super::{Templates, recorded};
use crate::cgroup::PodCgroup;
use crate::config::VmConfig;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::process::{Process, Start};
use crate::id::new_id;
use crate::oom_score;
use crate::undo::Undo;
use async_trait::async_trait;
use isopod_protocols::vmm::{ErrorKind, PageRange};
use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// A key that differs from others by its size.
pub fn key(vcpus: u8) -> Key {
    let file = Path::new("/usr/bin/sleep");
    let (vmm, kernel, root_image) = (file.into(), file.into(), file.into());
    let settings = VmConfig { vmm, kernel, root_image, vcpus, memory_mib: 64, ..VmConfig::default() };
    Recipe::node_wide(&settings).unwrap().key().unwrap()
}

/// A template of [`key`].
pub async fn template(vcpus: u8) -> Arc<Template> {
    template_of(&key(vcpus)).await
}

/// A template whose holder is any process that has the two files.
pub async fn template_of(key: &Key) -> Arc<Template> {
    named_template(&new_id().unwrap(), key).await
}

async fn named_template(name: &str, key: &Key) -> Arc<Template> {
    let bytes = key.memory_bytes();
    let memory = Sealed::seal(new_file("memory", bytes).unwrap()).unwrap();
    let state = Sealed::seal(new_file("state", 1).unwrap()).unwrap();
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let holder = Process::start(&Start {
        program: Path::new("/usr/bin/sleep"),
        words: &["sleep", "60"],
        log: null.as_fd(),
        descriptors: &[memory.as_fd(), state.as_fd()],
        cgroup: None,
        oom_score: oom_score::FIRST,
    })
    .await;
    Arc::new(Template::new(name, key, memory, state, holder.unwrap()))
}

/// Makes templates at once, or fails; counts, and keeps what it made, whose holders end with it.
#[derive(Default)]
struct Maker {
    fails: AtomicBool,
    made: AtomicU32,
    last: Mutex<Vec<Arc<Template>>>,
    /// How the next rehearsals fail; those after them find [`SET`].
    rehearsals_fail: Mutex<VecDeque<RehearsalError>>,
    /// The share of processors of each rehearsal until now.
    weights: Mutex<Vec<u32>>,
}

/// What rehearsals find.
const SET: [PageRange; 2] = [PageRange(1, 2), PageRange(7, 1)];

/// Pauses that a test can wait for.
const SHORT: Pauses = Pauses {
    first: Duration::from_millis(10),
    longest: Duration::from_millis(20),
    quiet: Duration::from_millis(10),
    longest_quiet: Duration::from_secs(20),
};

/// As of a clone that starves.
fn too_slow() -> RehearsalError {
    RehearsalError::Timeout { id: "clone".into(), seconds: 120, tail: Default::default() }
}

impl Maker {
    /// Ends all holders, and makes no new ones in their place.
    async fn end(&self) {
        self.fails.store(true, Ordering::Relaxed);
        let made = std::mem::take(&mut *self.last.lock().unwrap());
        for template in made {
            template.kill().await;
        }
    }
}

/// The table owns its maker, and a test looks at it.
struct Shared(Arc<Maker>, Arc<TemplateStore>);

#[async_trait]
impl Make for Shared {
    async fn make(&self, name: &str, key: &Key) -> Result<Arc<Template>, BuildError> {
        self.0.made.fetch_add(1, Ordering::Relaxed);
        let mut undo = Undo::new("test");
        if self.0.fails.load(Ordering::Relaxed) {
            let path = key.recipe.kernel.clone();
            return Err(BuildError::File {
                what: "kernel",
                path,
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        self.1.make_directory(name, &mut undo)?;
        let template = named_template(name, key).await;
        self.1.record(&template, &mut undo)?;
        undo.keep();
        self.0.last.lock().unwrap().push(Arc::clone(&template));
        Ok(template)
    }

    async fn rehearse(&self, _: &Template, weight: u32) -> Result<Vec<PageRange>, RehearsalError> {
        self.0.weights.lock().unwrap().push(weight);
        match self.0.rehearsals_fail.lock().unwrap().pop_front() {
            Some(error) => Err(error),
            None => Ok(SET.to_vec()),
        }
    }
}

fn templates(directory: &Path, fails: bool) -> (Arc<Templates>, Arc<Maker>) {
    let maker = Maker { fails: AtomicBool::new(fails), ..Maker::default() };
    templates_of(directory, maker, Table::default(), SHORT)
}

fn templates_of(
    directory: &Path,
    maker: Maker,
    table: Table,
    pauses: Pauses,
) -> (Arc<Templates>, Arc<Maker>) {
    let maker = Arc::new(maker);
    let store = Arc::new(TemplateStore::open(directory, None).unwrap());
    let shared = Shared(Arc::clone(&maker), Arc::clone(&store));
    (Templates::new(Box::new(shared), store, table, pauses), maker)
}

/// One whose first rehearsals fail so.
fn rehearsing(
    directory: &Path,
    failures: Vec<RehearsalError>,
    pauses: Pauses,
) -> (Arc<Templates>, Arc<Maker>) {
    let maker = Maker { rehearsals_fail: Mutex::new(failures.into()), ..Maker::default() };
    templates_of(directory, maker, Table::default(), pauses)
}

/// Waits for the template of that size and its working set.
async fn rehearsed(templates: &Templates, size: u8) -> Arc<Template> {
    until(|| templates.ready(&key(size)).is_some_and(|one| one.working_set()[..] == SET)).await;
    templates.ready(&key(size)).unwrap()
}

/// The record on disk, as it is written.
fn document(directory: &Path, template: &Template) -> serde_json::Value {
    let path = directory.join("templates").join(format!("{}.json", template.name));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Waits until something in the background has happened.
async fn until(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap();
}

#[tokio::test]
async fn template_is_made_once_though_asked_often_and_counts_its_clones() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, maker) = templates(directory.path(), false);
    for _ in 0..5 {
        templates.ask(&key(1));
    }
    until(|| templates.ready(&key(1)).is_some()).await;
    templates.ask(&key(1));
    assert_eq!(maker.made.load(Ordering::Relaxed), 1);
    assert!(templates.ready(&key(2)).is_none());
    let template = templates.ready(&key(1)).unwrap();
    let (first, second) = (templates.cloned(&template), templates.clone_of(&template.name).unwrap());
    assert!(templates.clone_of("other").is_none());
    drop(first);
    templates.missed();
    let shown = &templates.list()[0];
    assert_eq!((shown.state, shown.clones_alive, shown.clones_made), ("ready", 1, 2));
    assert_eq!(templates.misses(), 1);
    drop(second);
    assert_eq!(templates.list()[0].clones_alive, 0);
    maker.end().await;
}

#[tokio::test]
async fn template_whose_holder_ends_is_dropped_and_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, maker) = templates(directory.path(), false);
    templates.ask(&key(1));
    until(|| templates.ready(&key(1)).is_some()).await;
    let first = templates.ready(&key(1)).unwrap();
    first.kill().await;
    until(|| templates.ready(&key(1)).is_some_and(|now| now.name != first.name)).await;
    assert_eq!(maker.made.load(Ordering::Relaxed), 2);
    let rest = directory.path().join("templates").join(&first.name);
    until(|| !rest.exists()).await;
    assert_eq!(recorded(directory.path()).len(), 1);
    maker.end().await;
}

/// As of a VMM that its pod's cgroup has no memory for.
fn killed() -> HypervisorError {
    HypervisorError::Ended { id: "pod".into(), tail: Default::default() }
}

#[tokio::test]
async fn pod_in_which_no_vmm_runs_keeps_no_other_pod_from_the_template() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, maker) = templates(directory.path(), false);
    templates.ask(&key(1));
    until(|| templates.ready(&key(1)).is_some()).await;
    let template = templates.ready(&key(1)).unwrap();
    let is_there = || templates.ready(&key(1)).is_some_and(|now| now.name == template.name);
    for _ in 0..100 {
        // Neither a clone nor a boot runs in a megabyte.
        templates.clone_failed(&template, &killed());
        assert!(is_there(), "a pod's own limit took the template from all others");
    }
    for _ in 0..100 {
        templates.clone_failed(&template, &killed());
        templates.booted_instead(&template, "one", &killed());
        assert!(is_there(), "one pod took the template from all others");
    }
    templates.booted_instead(&template, "two", &killed());
    drop(templates.cloned(&template));
    for pod in ["three", "four"] {
        templates.booted_instead(&template, pod, &killed());
        assert!(is_there(), "pods before the last clone that ran are counted");
    }
    assert_eq!(maker.made.load(Ordering::Relaxed), 1);
    maker.end().await;
}

#[tokio::test]
async fn template_goes_when_several_pods_in_a_row_could_boot_and_not_be_cloned() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, maker) = templates(directory.path(), false);
    templates.ask(&key(1));
    until(|| templates.ready(&key(1)).is_some()).await;
    let template = templates.ready(&key(1)).unwrap();
    for pod in ["one", "two", "three"] {
        assert!(templates.ready(&key(1)).is_some(), "it went before pod {pod}");
        templates.booted_instead(&template, pod, &killed());
    }
    assert!(templates.ready(&key(1)).is_none());
    let reason = templates.list()[0].reason.clone().unwrap();
    assert!(reason.contains("3 pods in a row") && reason.contains("ended during boot"), "{reason}");
    // As after any first loss: made anew as soon as a pod asks.
    templates.ask(&key(1));
    until(|| templates.ready(&key(1)).is_some_and(|now| now.name != template.name)).await;
    maker.end().await;
}

#[tokio::test]
async fn template_that_a_vmm_finds_at_fault_goes_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, maker) = templates(directory.path(), false);
    templates.ask(&key(1));
    until(|| templates.ready(&key(1)).is_some()).await;
    let template = templates.ready(&key(1)).unwrap();
    let (id, message) = ("pod".to_owned(), "the state is damaged".to_owned());
    let damaged = HypervisorError::Refused { id, request: "restore", kind: ErrorKind::Template, message };
    templates.clone_failed(&template, &damaged);
    assert!(templates.ready(&key(1)).is_none());
    assert!(templates.list()[0].reason.as_ref().unwrap().contains("the state is damaged"));
    maker.end().await;
}

#[tokio::test]
async fn template_that_cannot_be_made_is_shown_with_the_reason_and_not_tried_again_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, maker) = templates(directory.path(), true);
    templates.ask(&key(1));
    until(|| templates.list()[0].state == "failed").await;
    assert!(templates.list()[0].reason.as_ref().unwrap().contains("kernel"));
    templates.ask(&key(1));
    sleep(Duration::from_millis(20)).await;
    assert_eq!(maker.made.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn later_daemon_takes_back_what_is_whole_and_removes_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let (earlier, maker) = templates(directory.path(), false);
    for size in [1, 2] {
        earlier.ask(&key(size));
    }
    let (lives, died) = (rehearsed(&earlier, 1).await, rehearsed(&earlier, 2).await);
    until(|| document(directory.path(), &lives).get("working_set").is_some()).await;
    let half_made = directory.path().join("templates").join(new_id().unwrap());
    fs::create_dir(&half_made).unwrap();
    // The earlier daemon does not see it: the record that it removes is put back.
    let record = directory.path().join("templates").join(format!("{}.json", died.name));
    let text = fs::read(&record).unwrap();
    died.kill().await;
    until(|| !record.exists()).await;
    until(|| maker.made.load(Ordering::Relaxed) == 3).await;
    fs::write(&record, text).unwrap();

    let (later, _) = templates(directory.path(), false);
    later.adopt().await.unwrap();
    let back = later.ready(&key(1)).unwrap();
    assert_eq!((&back.name, &back.built_from), (&lives.name, &lives.built_from));
    assert_eq!(back.record().unwrap(), lives.record().unwrap());
    assert!(!half_made.exists() && !record.exists());
    maker.end().await;
}

#[tokio::test]
async fn holder_of_files_that_are_not_sealed_is_not_taken_back() {
    let made = template(1).await;
    let record = made.record().unwrap();
    assert!(Template::adopt(&made.name, record.clone()).unwrap().is_some());
    let impossible = vec![PageRange(0, u64::MAX)];
    let told = super::TemplateRecord { working_set: impossible, ..record.clone() };
    assert!(Template::adopt(&made.name, told).unwrap().unwrap().working_set().is_empty());
    let mut other = record.clone();
    other.key.recipe.boot.memory_mib = 65;
    assert!(Template::adopt(&made.name, other).unwrap().is_none());
    made.kill().await;
    assert!(Template::adopt(&made.name, record.clone()).unwrap().is_none());

    let (memory, state) = (new_file("memory", 64 << 20).unwrap(), new_file("state", 1).unwrap());
    let holder = Process::start(&Start {
        program: Path::new("/usr/bin/sleep"),
        words: &["sleep", "60"],
        log: state.as_fd(),
        descriptors: &[memory.as_fd(), state.as_fd()],
        cgroup: None,
        oom_score: oom_score::FIRST,
    })
    .await;
    let holder = holder.unwrap();
    let unsealed =
        super::TemplateRecord { pid: holder.pid, started_at_ticks: holder.started_at_ticks, ..record };
    assert!(Template::adopt("x", unsealed).is_err());
    holder.kill().await;
}

#[tokio::test]
async fn rehearsal_that_fails_is_told_and_tried_again_with_a_larger_share_of_processors() {
    let directory = tempfile::tempdir().unwrap();
    let failures = vec![too_slow(), RehearsalError::Empty("t".into()), too_slow()];
    let (templates, maker) = rehearsing(directory.path(), failures, SHORT);
    // The second attempt waits for this pod.
    let starting = templates.pod_starts();
    templates.ask(&key(1));
    until(|| templates.list().first().is_some_and(|one| one.rehearsal == Some("failed"))).await;
    let shown = &templates.list()[0];
    assert_eq!(shown.state, "ready", "it may be cloned all the while");
    assert!(shown.rehearsal_reason.as_ref().unwrap().contains("did not rehearse within 120 s"), "{shown:?}");
    assert_eq!(shown.working_set_pages, None);
    let template = templates.ready(&key(1)).unwrap();
    assert!(template.working_set().is_empty());
    assert!(document(directory.path(), &template).get("working_set").is_none(), "an empty set is recorded");
    sleep(SHORT.first * 5).await;
    assert_eq!(*maker.weights.lock().unwrap(), [1], "it did not wait until no pod starts");

    drop(starting);
    let template = rehearsed(&templates, 1).await;
    assert_eq!(*maker.weights.lock().unwrap(), [1, 10, 100, 100]);
    let shown = &templates.list()[0];
    assert_eq!((shown.rehearsal, shown.working_set_pages), (Some("done"), Some(3)));
    assert_eq!(shown.rehearsal_reason, None);
    until(|| document(directory.path(), &template)["working_set"] == serde_json::json!([[1, 2], [7, 1]]))
        .await;
    maker.end().await;
}

#[tokio::test]
async fn template_without_a_working_set_is_rehearsed_by_the_next_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let outdated = RehearsalError::Outdated("t".into());
    let (earlier, maker) = rehearsing(directory.path(), vec![outdated], SHORT);
    earlier.ask(&key(1));
    until(|| earlier.list().first().is_some_and(|one| one.rehearsal == Some("failed"))).await;
    sleep(SHORT.first * 5).await;
    assert_eq!(maker.weights.lock().unwrap().len(), 1, "what is of no use is not tried again");
    // As a daemon wrote it that did not know better.
    let template = earlier.ready(&key(1)).unwrap();
    let mut document = document(directory.path(), &template);
    document["working_set"] = serde_json::json!([]);
    let path = directory.path().join("templates").join(format!("{}.json", template.name));
    fs::write(&path, document.to_string()).unwrap();

    let (later, _) = templates(directory.path(), false);
    later.adopt().await.unwrap();
    let back = rehearsed(&later, 1).await;
    assert_eq!(back.name, template.name);
    until(|| recorded(directory.path())[0].working_set == SET).await;
    let (last, idle) = templates(directory.path(), false);
    last.adopt().await.unwrap();
    assert!(matches!(last.ready(&key(1)).unwrap().rehearsal(), Rehearsal::Done(_)));
    sleep(SHORT.first * 2).await;
    assert!(idle.weights.lock().unwrap().is_empty(), "what is known is not looked for again");
    maker.end().await;
}

#[tokio::test]
async fn template_that_goes_between_two_rehearsals_is_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let minute = Duration::from_secs(60);
    let pauses = Pauses { first: minute, longest: minute, ..SHORT };
    let (templates, maker) = rehearsing(directory.path(), vec![too_slow()], pauses);
    templates.ask(&key(1));
    until(|| templates.list().first().is_some_and(|one| one.rehearsal == Some("failed"))).await;
    let template = Arc::downgrade(&templates.ready(&key(1)).unwrap());
    maker.end().await;
    until(|| template.upgrade().is_none()).await;
}

#[tokio::test]
async fn template_that_cannot_be_made_is_tried_again_after_the_pause_though_nobody_asks() {
    let directory = tempfile::tempdir().unwrap();
    let maker = Maker { fails: AtomicBool::new(true), ..Maker::default() };
    let table = Table::new(Duration::from_millis(20));
    let (templates, maker) = templates_of(directory.path(), maker, table, SHORT);
    templates.ask(&key(1));
    until(|| maker.made.load(Ordering::Relaxed) >= 2).await;
    maker.fails.store(false, Ordering::Relaxed);
    rehearsed(&templates, 1).await;
    maker.end().await;
}

#[tokio::test]
async fn vm_that_rehearsed_for_an_earlier_daemon_is_ended_and_the_holder_is_not() {
    let (directory, cgroups) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (earlier, maker) = templates(directory.path(), false);
    earlier.ask(&key(1));
    let template = rehearsed(&earlier, 1).await;
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let left = Process::start(&Start {
        program: Path::new("/usr/bin/sleep"),
        words: &["sleep", "60"],
        log: null.as_fd(),
        descriptors: &[],
        cgroup: None,
        oom_score: oom_score::FIRST,
    })
    .await;
    let left = left.unwrap();
    let cgroup = PodCgroup::of_template(cgroups.path(), &template.name);
    cgroup.create().unwrap();
    let listed = format!("{}\n{}\n", template.holder_pid(), left.pid);
    fs::write(cgroup.path().join("cgroup.procs"), listed).unwrap();

    let store = TemplateStore::open(directory.path(), Some(cgroups.path().to_owned())).unwrap();
    let back = store.adopt().await.unwrap();
    assert_eq!(back.len(), 1);
    timeout(Duration::from_secs(20), left.ended()).await.unwrap();
    let record = template.record().unwrap();
    assert!(Process::adopt(record.pid, record.started_at_ticks).unwrap().is_some(), "the holder was killed");
    maker.end().await;
}
