//! The table of templates, and what becomes of each: see the states in [`super`].
//!
//! Used by [`super::Templates`] under its lock. Only decisions are made here, and each says what to do about it; no process
//! is started or ended, and time is a parameter.

use super::super::HypervisorError;
use super::holder::Template;
use super::key::{Key, Recipe};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most templates, those that are being made or failed counted.
const MOST: usize = 8;

/// How long one must not have been asked for before another one takes its place: with more sizes of pods than places,
/// templates would be made all the time and never used.
const IDLE: Duration = Duration::from_secs(60);

/// Pause after a first failure; each further one doubles it, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// VMs in a row whose clones failed, and that could boot, for which a template is given up. More than one, so
/// that what happens to one pod, whose limits its owner chooses, takes the template from no other pod.
const MOST_FAILED_CLONES: usize = 3;

/// A template's state, see [`super`].
pub enum State {
    /// Being made, or about to.
    Building,
    /// There.
    Ready(Arc<Template>),
    /// Not there; it is made again when it is asked for after the pause.
    Failed {
        /// Why.
        reason: String,
        /// End of the pause.
        until: Instant,
    },
}

/// A place in the table.
pub struct Entry {
    /// What it is made from.
    pub key: Key,
    /// Its state.
    pub state: State,
    asked: Instant,
    /// Failures since the last clone that ran.
    failures: u32,
    /// VMs that booted after their clones failed, since the last clone that ran; fewer than
    /// [`MOST_FAILED_CLONES`].
    failed_clones: BTreeSet<String>,
}

/// All templates by the hash of their keys.
pub struct Table {
    entries: BTreeMap<String, Entry>,
    first_pause: Duration,
}

impl Default for Table {
    fn default() -> Self {
        Self::new(FIRST_PAUSE)
    }
}

impl Table {
    /// An empty table; after a first failure there is a pause of `first_pause`.
    pub fn new(first_pause: Duration) -> Self {
        Self { entries: BTreeMap::new(), first_pause }
    }

    /// The template of that key, if it is there.
    pub fn ready(&mut self, hash: &str, now: Instant) -> Option<Arc<Template>> {
        let entry = self.entries.get_mut(hash)?;
        entry.asked = now;
        match &entry.state {
            State::Ready(template) => Some(Arc::clone(template)),
            _ => None,
        }
    }

    /// Whether one is to be made for that key now. Then it is Building, and what had to go for it is answered.
    pub fn begin(&mut self, key: &Key, now: Instant) -> Option<Vec<Arc<Template>>> {
        let hash = key.hash();
        if let Some(entry) = self.entries.get_mut(&hash) {
            let again = matches!(entry.state, State::Failed { until, .. } if until <= now);
            if again {
                entry.state = State::Building;
            }
            return again.then(Vec::new);
        }
        let displaced = match self.entries.len() < MOST {
            true => None,
            false => self.entries.remove(&self.longest_idle(now)?),
        };
        self.put(key, State::Building, now);
        Some(displaced.and_then(Entry::into_template).into_iter().collect())
    }

    /// Takes in one that is there already. What it replaces is answered.
    pub fn adopt(&mut self, template: Arc<Template>, now: Instant) -> Vec<Arc<Template>> {
        let key = template.key.clone();
        let replaced = self.put(&key, State::Ready(template), now);
        replaced.and_then(Entry::into_template).into_iter().collect()
    }

    /// The making of one ended. Answers what is to go: those of the same recipe from files that are no more, or the new one
    /// itself, where nobody waits for it.
    pub fn settle(
        &mut self,
        hash: &str,
        made: Result<Arc<Template>, String>,
        now: Instant,
    ) -> Vec<Arc<Template>> {
        let first_pause = self.first_pause;
        let Some(entry) = self.entries.get_mut(hash) else { return made.into_iter().collect() };
        match made {
            Err(reason) => {
                entry.failures += 1;
                entry.state = State::Failed { reason, until: now + pause(first_pause, entry.failures) };
                Vec::new()
            }
            Ok(template) => {
                let recipe = template.key.recipe.clone();
                entry.state = State::Ready(template);
                self.remove(|other_hash, entry| other_hash != hash && entry.key.recipe == recipe)
            }
        }
    }

    /// The template of that name is of no use any more. The first time it is made anew at once, when it is asked for.
    pub fn lose(&mut self, name: &str, reason: String, now: Instant) -> Option<Arc<Template>> {
        let first_pause = self.first_pause;
        let entry = self.entries.values_mut().find(|entry| entry.is(name))?;
        entry.failures += 1;
        entry.failed_clones.clear();
        let failed = State::Failed { reason, until: now + pause(first_pause, entry.failures - 1) };
        match std::mem::replace(&mut entry.state, failed) {
            State::Ready(template) => Some(template),
            _ => None,
        }
    }

    /// The VM `id` booted after its clone of the template of that name had failed. Answers the template if it
    /// is lost by that.
    pub fn booted_instead(
        &mut self,
        name: &str,
        id: &str,
        error: &HypervisorError,
        now: Instant,
    ) -> Option<Arc<Template>> {
        let entry = self.entries.values_mut().find(|entry| entry.is(name))?;
        entry.failed_clones.insert(id.to_owned());
        match entry.failed_clones.len() {
            MOST_FAILED_CLONES => {
                let reason =
                    format!("clones of {MOST_FAILED_CLONES} pods in a row failed, the last one: {error}");
                self.lose(name, reason, now)
            }
            _ => None,
        }
    }

    /// The end of the pause of one that failed, where it is still to come.
    pub fn paused_until(&self, hash: &str, now: Instant) -> Option<Instant> {
        match self.entries.get(hash)?.state {
            State::Failed { until, .. } if until > now => Some(until),
            _ => None,
        }
    }

    /// A clone of it runs: what failed before is forgiven.
    pub fn proved(&mut self, name: &str) {
        if let Some(entry) = self.entries.values_mut().find(|entry| entry.is(name)) {
            entry.failures = 0;
            entry.failed_clones.clear();
        }
    }

    /// Forgets those whose recipe nobody follows any more, and answers them.
    pub fn keep_only(&mut self, wanted: impl Fn(&Recipe) -> bool) -> Vec<Arc<Template>> {
        self.remove(|_, entry| !wanted(&entry.key.recipe))
    }

    /// The template of that name, if it is there.
    pub fn named(&self, name: &str) -> Option<&Arc<Template>> {
        self.entries.values().find_map(|entry| match &entry.state {
            State::Ready(template) if template.name == name => Some(template),
            _ => None,
        })
    }

    /// All of them.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    fn put(&mut self, key: &Key, state: State, now: Instant) -> Option<Entry> {
        let (key, failed_clones) = (key.clone(), BTreeSet::new());
        let entry = Entry { key, state, asked: now, failures: 0, failed_clones };
        self.entries.insert(entry.key.hash(), entry)
    }

    fn longest_idle(&self, now: Instant) -> Option<String> {
        let idle = self.entries.iter().filter(|(_, entry)| {
            !matches!(entry.state, State::Building) && now.saturating_duration_since(entry.asked) >= IDLE
        });
        idle.min_by_key(|(_, entry)| entry.asked).map(|(hash, _)| hash.clone())
    }

    /// Removes those that fit, but not what is being made: it comes back by [`Self::settle`].
    fn remove(&mut self, fits: impl Fn(&str, &Entry) -> bool) -> Vec<Arc<Template>> {
        let going =
            |hash: &String, entry: &mut Entry| !matches!(entry.state, State::Building) && fits(hash, entry);
        let removed: Vec<(String, Entry)> = self.entries.extract_if(.., going).collect();
        removed.into_iter().filter_map(|(_, entry)| entry.into_template()).collect()
    }
}

impl Entry {
    fn is(&self, name: &str) -> bool {
        matches!(&self.state, State::Ready(template) if template.name == name)
    }

    fn into_template(self) -> Option<Arc<Template>> {
        match self.state {
            State::Ready(template) => Some(template),
            _ => None,
        }
    }
}

fn pause(first: Duration, failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        // 2^6 minutes are more than the longest pause already.
        more => (first * (1 << (more - 1).min(6))).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key, template};
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn key_is_built_once_though_asked_often() {
        let (mut table, now) = (Table::default(), Instant::now());
        assert!(table.begin(&key(1), now).is_some());
        assert!(table.begin(&key(1), now + MINUTE).is_none());
        let hash = key(1).hash();
        assert!(table.ready(&hash, now).is_none());
        assert!(table.settle(&hash, Ok(template(1).await), now).is_empty());
        assert!(table.ready(&hash, now).is_some());
        assert!(table.begin(&key(1), now + MINUTE).is_none());
    }

    #[test]
    fn failures_pause_for_longer_each_time() {
        let pause = |failures| pause(FIRST_PAUSE, failures);
        assert_eq!([0, 1, 2, 3].map(|n| pause(n) / 60).map(|p| p.as_secs()), [0, 1, 2, 4]);
        assert_eq!([7, 8, 1000].map(pause), [LONGEST_PAUSE; 3]);
        let (mut table, now) = (Table::default(), Instant::now());
        let hash = key(1).hash();
        table.begin(&key(1), now).unwrap();
        table.settle(&hash, Err("no kvm".into()), now);
        assert!(table.begin(&key(1), now + MINUTE / 2).is_none());
        assert!(table.begin(&key(1), now + MINUTE).is_some());
        table.settle(&hash, Err("no kvm".into()), now);
        assert!(table.begin(&key(1), now + MINUTE).is_none());
        assert!(table.begin(&key(1), now + 2 * MINUTE).is_some());
    }

    #[tokio::test]
    async fn lost_template_is_made_anew_at_once_and_after_a_pause_when_it_is_lost_again() {
        let (mut table, now) = (Table::default(), Instant::now());
        let hash = key(1).hash();
        let ready = async |table: &mut Table, name: &str| {
            table.begin(&key(1), now).unwrap();
            let made = template(1).await;
            assert_ne!(made.name, name);
            table.settle(&hash, Ok(Arc::clone(&made)), now);
            made.name.clone()
        };
        let first = ready(&mut table, "").await;
        assert_eq!(table.lose(&first, "gone".into(), now).unwrap().name, first);
        assert!(table.lose(&first, "gone".into(), now).is_none());
        let second = ready(&mut table, &first).await;
        assert!(table.lose(&second, "gone".into(), now).is_some());
        assert!(table.begin(&key(1), now).is_none());
        assert!(table.begin(&key(1), now + MINUTE).is_some());
        let third = template(1).await;
        table.settle(&hash, Ok(Arc::clone(&third)), now);
        table.proved(&third.name);
        table.lose(&third.name, "gone".into(), now);
        assert!(table.begin(&key(1), now).is_some());
    }

    #[tokio::test]
    async fn full_table_gives_up_the_one_that_was_idle_for_longest() {
        let (mut table, start) = (Table::default(), Instant::now());
        let sizes = 1..=u8::try_from(MOST).unwrap();
        for size in sizes.clone() {
            let now = start + Duration::from_secs(size.into());
            assert!(table.begin(&key(size), now).unwrap().is_empty());
            table.settle(&key(size).hash(), Ok(template(size).await), now);
        }
        assert!(table.begin(&key(60), start + MINUTE / 2).is_none(), "all are in use");
        let later = start + 2 * MINUTE;
        table.ready(&key(1).hash(), later).unwrap();
        let displaced = table.begin(&key(60), later).unwrap();
        assert_eq!(displaced.iter().map(|t| t.key.clone()).collect::<Vec<_>>(), [key(2)]);
        assert_eq!(table.entries().count(), MOST);
        assert!(table.ready(&key(1).hash(), later).is_some());
    }

    #[tokio::test]
    async fn template_of_replaced_files_goes_when_the_new_one_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kernel");
        let with_kernel = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Recipe { kernel: file.clone(), ..key(1).recipe }.key().unwrap()
        };
        let (mut table, now) = (Table::default(), Instant::now());
        let (old, other) = (with_kernel("old"), key(2));
        let made = async |key: &Key| super::super::tests::template_of(key).await;
        for key in [&old, &other] {
            table.begin(key, now).unwrap();
            table.settle(&key.hash(), Ok(made(key).await), now);
        }
        let new = with_kernel("newer");
        assert!(table.begin(&new, now).unwrap().is_empty());
        let gone = table.settle(&new.hash(), Ok(made(&new).await), now);
        assert_eq!(gone.iter().map(|t| t.key.clone()).collect::<Vec<_>>(), [old]);
        assert_eq!(table.entries().count(), 2);
        let gone = table.keep_only(|recipe| recipe.boot.vcpus == 2);
        assert_eq!(gone.iter().map(|t| t.key.clone()).collect::<Vec<_>>(), [new]);
    }
}
