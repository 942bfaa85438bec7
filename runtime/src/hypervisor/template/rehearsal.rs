//! When a template is rehearsed: as soon as it is there, and again after each failure until the working set
//! is known.
//!
//! ```text
//!   Waiting -> Running -> Done
//!                | ^
//!         failed v |  after a pause that doubles, when no pod starts, with a larger share of processors
//!               Failed
//! ```
//!
//! [`Templates`] begins it for each template that has no working set, also for one that an earlier daemon
//! left so. A template may be cloned all the while: clones fault page by page then. What is not known is
//! never recorded as known.

use super::Templates;
use super::holder::Template;
use super::rehearse::RehearsalError;
use super::store::USUAL;
use isopod_protocols::vmm::PageRange;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Share of processors of a first attempt: it gives way to everything (`cpu.weight`).
const FIRST_WEIGHT: u32 = 1;

/// Share of processors that later attempts have at most. A node that is never idle would starve all attempts
/// otherwise; one virtual CPU for two minutes at most is what they cost it.
const MOST_WEIGHT: u32 = USUAL;

/// How much is known of a template's working set.
#[derive(Debug, Clone)]
pub enum Rehearsal {
    /// No attempt has begun.
    Waiting,
    /// A clone rehearses.
    Running,
    /// The last attempt failed; another one follows, unless the template is outdated.
    Failed {
        /// Why.
        reason: String,
    },
    /// What every clone writes, in rising order and never empty.
    Done(Arc<[PageRange]>),
}

impl Rehearsal {
    /// What a record says: an empty set is none, as earlier versions wrote it after a failure.
    pub fn recorded(pages: Vec<PageRange>) -> Self {
        if pages.is_empty() { Self::Waiting } else { Self::Done(pages.into()) }
    }

    /// The state as Status shows it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Failed { .. } => "failed",
            Self::Done(_) => "done",
        }
    }
}

/// Pauses between attempts. Tests have shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// After the first failure; each further one doubles it.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
    /// For so long no pod's VM must have been starting.
    pub quiet: Duration,
    /// How long that is waited for: some nodes start pods all the time.
    pub longest_quiet: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(10),
            longest: Duration::from_secs(600),
            quiet: Duration::from_secs(5),
            longest_quiet: Duration::from_secs(60),
        }
    }
}

impl Pauses {
    fn after(&self, failures: u32) -> Duration {
        // 2^16 times the first pause is longer than the longest.
        (self.first * (1 << (failures.max(1) - 1).min(16))).min(self.longest)
    }
}

fn weight(failures: u32) -> u32 {
    FIRST_WEIGHT.saturating_mul(10_u32.saturating_pow(failures)).min(MOST_WEIGHT)
}

impl Templates {
    /// Has a template rehearsed in the background, unless its working set is known.
    pub(super) fn rehearse(self: &Arc<Self>, template: &Arc<Template>) {
        if matches!(template.rehearsal(), Rehearsal::Done(_)) {
            return;
        }
        // One that goes during a pause is not kept by that: its memory is the template's.
        let (templates, template) = (Arc::clone(self), Arc::downgrade(template));
        tokio::spawn(async move {
            for failures in 0.. {
                if failures > 0 {
                    sleep(templates.pauses.after(failures)).await;
                    templates.starts.quiet(templates.pauses.quiet, templates.pauses.longest_quiet).await;
                }
                let Some(template) = template.upgrade() else { return };
                if !templates.rehearse_once(&template, failures).await {
                    return;
                }
            }
        });
    }

    /// One attempt, after so many failures. Answers whether another one is to follow.
    async fn rehearse_once(&self, template: &Template, failures: u32) -> bool {
        // Whoever makes a template or rehearses takes at most one processor.
        let turn = self.turn.lock().await;
        if self.table().named(&template.name).is_none() {
            return false;
        }
        template.set_rehearsal(Rehearsal::Running);
        let begun = Instant::now();
        let found = self.maker.rehearse(template, weight(failures)).await;
        drop(turn);
        match found {
            Ok(pages) => {
                let (took_ms, ranges) = (begun.elapsed().as_millis(), pages.len());
                tracing::info!(template = template.name, took_ms, ranges, failures, "rehearsal is done");
                template.set_rehearsal(Rehearsal::Done(pages.into()));
                self.keep_working_set(template);
                false
            }
            Err(error) => {
                let again = !matches!(error, RehearsalError::Outdated(_));
                let failures = failures.saturating_add(1);
                tracing::warn!(
                    template = template.name,
                    %error,
                    failures,
                    again,
                    "rehearsal failed: clones fault page by page until one succeeds"
                );
                template.set_rehearsal(Rehearsal::Failed { reason: error.to_string() });
                again
            }
        }
    }

    /// Writes the record anew. A template that went meanwhile has none any more.
    fn keep_working_set(&self, template: &Template) {
        let table = self.table();
        if table.named(&template.name).is_none() {
            return;
        }
        if let Err(error) = self.store.update(template) {
            tracing::error!(template = template.name, %error, "working set is not recorded: the next daemon rehearses once more");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses = Pauses::default();
        let seconds = [1, 2, 3, 4].map(|failures| pauses.after(failures).as_secs());
        assert_eq!(seconds, [10, 20, 40, 80]);
        assert_eq!([7, 8, 1000, u32::MAX].map(|failures| pauses.after(failures)), [pauses.longest; 4]);
    }

    #[test]
    fn later_attempts_have_a_larger_share_of_processors() {
        assert_eq!([0, 1, 2, 3, u32::MAX].map(weight), [1, 10, 100, 100, 100]);
    }

    #[test]
    fn empty_set_in_a_record_is_none() {
        assert_eq!(Rehearsal::recorded(Vec::new()).name(), "waiting");
        assert_eq!(Rehearsal::recorded(vec![PageRange(1, 1)]).name(), "done");
    }
}
