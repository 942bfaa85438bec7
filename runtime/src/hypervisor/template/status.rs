//! What people are shown of templates: by Status.

use super::rehearsal::Rehearsal;
use super::table::{Entry, State};
use crate::wall_clock::now_ns;
use serde::Serialize;

/// One template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateStatus {
    /// What it is made from.
    pub built_from: String,
    /// Who may share it; empty: all of the node.
    pub scope: String,
    /// `building`, `ready` or `failed`.
    pub state: &'static str,
    /// Why it failed.
    pub reason: Option<String>,
    /// Its name, where it is ready; so for what follows.
    pub name: Option<String>,
    /// Seconds since it was made.
    pub age_seconds: Option<u64>,
    /// Memory that it takes, bytes.
    pub memory_bytes: Option<u64>,
    /// `waiting`, `running`, `failed` or `done`: whether it is known what every clone writes.
    pub rehearsal: Option<&'static str>,
    /// Why the last rehearsal failed, until the next one begins.
    pub rehearsal_reason: Option<String>,
    /// Pages that every clone is given before it asks for them.
    pub working_set_pages: Option<u64>,
    /// Clones that live.
    pub clones_alive: u64,
    /// Clones that were made since the daemon started.
    pub clones_made: u64,
    /// Of these, clones that were not given all of those pages.
    pub clones_unpopulated: u64,
}

impl TemplateStatus {
    /// What there is to see of an entry.
    pub(super) fn new(entry: &Entry) -> Self {
        let shown = Self {
            built_from: entry.key.built_from(),
            scope: entry.key.recipe.scope.clone(),
            state: "building",
            reason: None,
            name: None,
            age_seconds: None,
            memory_bytes: None,
            rehearsal: None,
            rehearsal_reason: None,
            working_set_pages: None,
            clones_alive: 0,
            clones_made: 0,
            clones_unpopulated: 0,
        };
        match &entry.state {
            State::Building => shown,
            State::Failed { reason, .. } => Self { state: "failed", reason: Some(reason.clone()), ..shown },
            State::Ready(template) => Self {
                state: "ready",
                name: Some(template.name.clone()),
                age_seconds: Some(age_seconds(template.built_at_ns)),
                memory_bytes: template.memory_bytes().ok(),
                clones_alive: template.clones().alive(),
                clones_made: template.clones().made(),
                clones_unpopulated: template.clones().unpopulated(),
                ..shown.with(&template.rehearsal())
            },
        }
    }

    fn with(self, rehearsal: &Rehearsal) -> Self {
        let (mut reason, mut pages) = (None, None);
        match rehearsal {
            Rehearsal::Waiting | Rehearsal::Running => {}
            Rehearsal::Failed { reason: why } => reason = Some(why.clone()),
            Rehearsal::Done(set) => pages = Some(set.iter().map(|range| range.1).sum()),
        }
        Self { rehearsal: Some(rehearsal.name()), rehearsal_reason: reason, working_set_pages: pages, ..self }
    }
}

/// Seconds since a moment of the wall clock; 0 where that is still to come.
pub fn age_seconds(built_at_ns: i64) -> u64 {
    u64::try_from(now_ns().saturating_sub(built_at_ns)).unwrap_or(0) / 1_000_000_000
}
