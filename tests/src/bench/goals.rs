//! What was set out to be reached. A goal is judged, never bent: a missed one is shown as missed.

use super::report::{Clock, Row};
use std::fmt;

/// A bound that a row keeps or breaks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Isopod's figure over the peer's, at most.
    RatioAtMost(f64),
    /// The same, at least: for figures where more is better.
    RatioAtLeast(f64),
    /// Isopod's own figure in the row's unit, at most.
    OursAtMost(f64),
}

/// Whether a row keeps its goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Met,
    /// It does not.
    Missed,
    /// What would tell was not measured.
    Unknown,
}

/// The goal of a metric by a clock; nothing for a name that has none.
pub fn of(metric: &str, clock: Clock) -> Option<Goal> {
    Some(match (metric, clock) {
        ("vm_boot_to_agent", _) => Goal::RatioAtMost(0.6),
        ("vm_clone_to_agent", _) => Goal::RatioAtMost(0.05),
        ("pod_start", Clock::Icount) => Goal::RatioAtMost(0.7),
        // under emulation a guest that boots is translated anew each time
        ("pod_start", Clock::Wall) => Goal::RatioAtMost(1.2),
        ("exec", _) => Goal::RatioAtMost(0.3),
        ("pod_stop", _) => Goal::RatioAtMost(0.7),
        ("idle_pod_memory", _) => Goal::OursAtMost(40.0),
        ("daemon_memory", _) => Goal::OursAtMost(32.0),
        ("layer_read", _) => Goal::RatioAtLeast(0.5),
        _ => return None,
    })
}

impl Goal {
    /// Whether the row keeps it.
    pub fn judge(self, row: &Row) -> Verdict {
        let kept = match self {
            Self::RatioAtMost(bound) => row.ratio.map(|ratio| ratio <= bound),
            Self::RatioAtLeast(bound) => row.ratio.map(|ratio| ratio >= bound),
            Self::OursAtMost(bound) => row.ours.map(|ours| ours <= bound),
        };
        match kept {
            Some(true) => Verdict::Met,
            Some(false) => Verdict::Missed,
            None => Verdict::Unknown,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtMost(bound) => write!(f, "<= {bound}"),
            Self::RatioAtLeast(bound) => write!(f, ">= {bound}"),
            Self::OursAtMost(bound) => write!(f, "Isopod <= {bound}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, ours: Option<f64>, peer: Option<f64>) -> Row {
        Row::new((name, ""), (ours, peer), "peer", 1, Clock::Wall)
    }

    #[test]
    fn a_figure_on_the_bound_keeps_the_goal() {
        assert_eq!(Goal::RatioAtMost(0.5).judge(&row("", Some(1.0), Some(2.0))), Verdict::Met);
        assert_eq!(Goal::RatioAtLeast(0.5).judge(&row("", Some(1.0), Some(2.0))), Verdict::Met);
        assert_eq!(Goal::OursAtMost(1.0).judge(&row("", Some(1.0), None)), Verdict::Met);
    }

    #[test]
    fn more_is_better_only_where_the_goal_says_so() {
        let much = row("", Some(9.0), Some(1.0));
        assert_eq!(Goal::RatioAtMost(0.5).judge(&much), Verdict::Missed);
        assert_eq!(Goal::RatioAtLeast(0.5).judge(&much), Verdict::Met);
    }

    #[test]
    fn without_a_peer_a_ratio_is_not_judged() {
        assert_eq!(Goal::RatioAtMost(0.5).judge(&row("", Some(1.0), None)), Verdict::Unknown);
    }

    #[test]
    fn starting_a_pod_has_a_goal_for_each_clock() {
        assert_eq!(of("pod_start", Clock::Icount), Some(Goal::RatioAtMost(0.7)));
        assert_eq!(of("pod_start", Clock::Wall), Some(Goal::RatioAtMost(1.2)));
        assert_eq!(of("unheard_of", Clock::Wall), None);
    }
}
