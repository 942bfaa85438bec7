//! What was set out to be reached. A goal is judged, never bent: a missed one is shown as missed.

use super::report::{Clock, Row};
use std::fmt;

/// One bound that a row keeps or breaks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Isopod's figure over the peer's, at most.
    RatioAtMost(f64),
    /// The same, at least: for figures where more is better.
    RatioAtLeast(f64),
    /// Isopod's own figure in the row's unit, at most.
    OursAtMost(f64),
    /// The same, at least.
    OursAtLeast(f64),
}

/// The bounds that a row must keep, all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal(&'static [Bound]);

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
    use Bound::{OursAtLeast, OursAtMost, RatioAtLeast, RatioAtMost};
    Some(Goal(match (metric, clock) {
        ("vm_boot_to_agent", _) => &[RatioAtMost(0.6)],
        // milliseconds of another machine's clock say nothing, counted ones do
        ("vm_clone_to_agent", Clock::Icount) => &[RatioAtMost(0.05), OursAtMost(10.0)],
        ("vm_clone_to_agent", Clock::Wall) => &[RatioAtMost(0.05)],
        ("pod_start" | "pod_start_without_cni", Clock::Icount) => &[RatioAtMost(0.35)],
        // under emulation a guest's code is translated anew each time
        ("pod_start" | "pod_start_without_cni", Clock::Wall) => &[RatioAtMost(0.5)],
        ("exec", _) => &[RatioAtMost(0.3)],
        ("pod_stop", _) => &[RatioAtMost(0.7)],
        ("pod_start_50", _) => &[RatioAtMost(0.5)],
        ("pod_start_at_200", _) => &[RatioAtMost(1.2)],
        ("idle_pod_memory", _) => &[OursAtMost(8.0), RatioAtMost(0.75)],
        ("daemon_memory", _) => &[OursAtMost(32.0)],
        ("idle_cpu", _) => &[RatioAtMost(1.0)],
        ("memory_return", _) => &[OursAtLeast(0.9)],
        ("pull_largest", _) => &[RatioAtMost(1.25)],
        ("pull_layers_per_second", _) => &[RatioAtLeast(0.8)],
        ("pull_peak_memory", _) => &[RatioAtMost(1.0)],
        ("layer_read", _) => &[RatioAtLeast(0.5)],
        ("net_throughput", _) => &[RatioAtLeast(0.5)],
        ("net_latency", _) => &[RatioAtMost(3.0)],
        _ => return None,
    }))
}

impl Bound {
    /// Whether the row keeps it; nothing where what would tell was not measured.
    fn is_kept(self, row: &Row) -> Option<bool> {
        match self {
            Self::RatioAtMost(bound) => row.ratio.map(|ratio| ratio <= bound),
            Self::RatioAtLeast(bound) => row.ratio.map(|ratio| ratio >= bound),
            Self::OursAtMost(bound) => row.ours.map(|ours| ours <= bound),
            Self::OursAtLeast(bound) => row.ours.map(|ours| ours >= bound),
        }
    }
}

impl Goal {
    /// Whether the row keeps it. One broken bound is enough to miss it, whatever is not known of the others.
    pub fn judge(self, row: &Row) -> Verdict {
        let kept: Vec<_> = self.0.iter().map(|bound| bound.is_kept(row)).collect();
        if kept.contains(&Some(false)) {
            Verdict::Missed
        } else if kept.contains(&None) {
            Verdict::Unknown
        } else {
            Verdict::Met
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtMost(bound) => write!(f, "<= {bound}"),
            Self::RatioAtLeast(bound) => write!(f, ">= {bound}"),
            Self::OursAtMost(bound) => write!(f, "Isopod <= {bound}"),
            Self::OursAtLeast(bound) => write!(f, "Isopod >= {bound}"),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&bounds.join(", "))
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
        for bounds in [&[Bound::RatioAtMost(0.5)], &[Bound::RatioAtLeast(0.5)]] {
            assert_eq!(Goal(bounds).judge(&row("", Some(1.0), Some(2.0))), Verdict::Met);
        }
        for bounds in [&[Bound::OursAtMost(1.0)], &[Bound::OursAtLeast(1.0)]] {
            assert_eq!(Goal(bounds).judge(&row("", Some(1.0), None)), Verdict::Met);
        }
    }

    #[test]
    fn more_is_better_only_where_the_goal_says_so() {
        let much = row("", Some(9.0), Some(1.0));
        assert_eq!(Goal(&[Bound::RatioAtMost(0.5)]).judge(&much), Verdict::Missed);
        assert_eq!(Goal(&[Bound::RatioAtLeast(0.5)]).judge(&much), Verdict::Met);
        assert_eq!(Goal(&[Bound::OursAtLeast(0.9)]).judge(&row("", Some(0.8), Some(0.1))), Verdict::Missed);
    }

    #[test]
    fn without_a_peer_a_ratio_is_not_judged() {
        assert_eq!(Goal(&[Bound::RatioAtMost(0.5)]).judge(&row("", Some(1.0), None)), Verdict::Unknown);
    }

    #[test]
    fn goal_of_two_bounds_needs_both() {
        let goal = of("idle_pod_memory", Clock::Wall).unwrap();
        assert_eq!(goal.to_string(), "Isopod <= 8, <= 0.75");
        assert_eq!(goal.judge(&row("", Some(7.0), Some(10.0))), Verdict::Met);
        assert_eq!(goal.judge(&row("", Some(7.0), Some(7.0))), Verdict::Missed);
        assert_eq!(goal.judge(&row("", Some(9.0), Some(90.0))), Verdict::Missed);
        assert_eq!(goal.judge(&row("", Some(9.0), None)), Verdict::Missed);
        assert_eq!(goal.judge(&row("", Some(7.0), None)), Verdict::Unknown);
    }

    #[test]
    fn starting_a_pod_has_a_goal_for_each_clock() {
        assert_eq!(of("pod_start", Clock::Icount), Some(Goal(&[Bound::RatioAtMost(0.35)])));
        assert_eq!(of("pod_start", Clock::Wall), Some(Goal(&[Bound::RatioAtMost(0.5)])));
        assert_eq!(of("unheard_of", Clock::Wall), None);
    }
}
