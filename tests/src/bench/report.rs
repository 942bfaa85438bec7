//! What comes out: rows, a table for people, `report.json` for programs.
//!
//! A figure that was not measured is null, in both.

use super::goals::{self, Verdict};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::Path;

/// What drives the clock that figures were taken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The clock on the wall.
    Wall,
    /// Counted instructions: a millisecond is a million of them.
    Icount,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wall => "wall",
            Self::Icount => "icount",
        })
    }
}

/// One metric by one clock, both sides measured in the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The metric.
    pub name: String,
    /// The unit of `ours` and `peer`.
    pub unit: String,
    /// Isopod's figure.
    pub ours: Option<f64>,
    /// The peer's.
    pub peer: Option<f64>,
    /// Who the peer is.
    pub peer_name: String,
    /// `ours / peer`, where both are there.
    pub ratio: Option<f64>,
    /// Samples behind each figure.
    pub n: usize,
    /// The clock of the node in which it was measured.
    pub clock: Clock,
}

impl Row {
    /// A row with its ratio. Figures are kept to a thousandth.
    pub fn new(
        (name, unit): (&str, &str),
        (ours, peer): (Option<f64>, Option<f64>),
        peer_name: &str,
        n: usize,
        clock: Clock,
    ) -> Self {
        let ratio = ours.zip(peer).filter(|&(_, peer)| peer > 0.0).map(|(ours, peer)| ours / peer);
        Self {
            name: name.into(),
            unit: unit.into(),
            ours: ours.map(to_a_thousandth),
            peer: peer.map(to_a_thousandth),
            peer_name: peer_name.into(),
            ratio: ratio.map(to_a_thousandth),
            n,
            clock,
        }
    }

    /// Whether both sides were measured.
    pub fn is_whole(&self) -> bool {
        self.ours.is_some() && self.peer.is_some()
    }
}

fn to_a_thousandth(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

/// Writes the rows where programs find them.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(rows)?;
    json.push(b'\n');
    fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what [`write()`] wrote.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&json).with_context(|| format!("{} is not a report", path.display()))
}

/// The rows as a table, in a form that is readable as it is and as Markdown.
pub fn table(rows: &[Row]) -> String {
    let head = ["metric", "clock", "unit", "Isopod", "peer", "ratio", "goal", "", "n", "the peer"];
    let mut lines = vec![head.map(String::from)];
    lines.extend(rows.iter().map(cells));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let rule = widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>();
    let show = |cells: &[String]| {
        let padded: Vec<_> =
            cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let mut text = show(&lines[0]) + &show(&rule);
    text.extend(lines[1..].iter().map(|line| show(line)));
    text
}

fn cells(row: &Row) -> [String; 10] {
    let figure = |value: Option<f64>| match value {
        None => "-".to_owned(),
        // shares lie below 1
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.1}"),
    };
    let goal = goals::of(&row.name, row.clock);
    let verdict = match goal.map(|goal| goal.judge(row)) {
        Some(Verdict::Met) => "met",
        Some(Verdict::Missed) => "missed",
        Some(Verdict::Unknown) => "not measured",
        None => "",
    };
    [
        row.name.clone(),
        row.clock.to_string(),
        row.unit.clone(),
        figure(row.ours),
        figure(row.peer),
        row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        goal.map_or(String::new(), |goal| goal.to_string()),
        verdict.to_owned(),
        row.n.to_string(),
        row.peer_name.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: Option<f64>, peer: Option<f64>) -> Row {
        Row::new(("exec", "ms"), (ours, peer), "containerd", 50, Clock::Wall)
    }

    #[test]
    fn ratio_is_ours_over_the_peers() {
        assert_eq!(row(Some(1.0), Some(3.0)).ratio, Some(0.333));
    }

    #[test]
    fn missing_side_leaves_no_ratio() {
        assert_eq!(row(Some(1.0), None).ratio, None);
        assert_eq!(row(None, Some(1.0)).ratio, None);
        assert!(!row(None, Some(1.0)).is_whole());
    }

    #[test]
    fn peer_of_zero_leaves_no_ratio() {
        assert_eq!(row(Some(1.0), Some(0.0)).ratio, None);
    }

    #[test]
    fn report_has_the_agreed_keys_and_null_for_what_is_missing() {
        let json = serde_json::to_value([row(Some(1.5), None)]).unwrap();
        let expected = serde_json::json!([{
            "name": "exec", "unit": "ms", "ours": 1.5, "peer": null, "peer_name": "containerd",
            "ratio": null, "n": 50, "clock": "wall",
        }]);
        assert_eq!(json, expected);
    }

    #[test]
    fn report_is_read_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let rows = [row(Some(1.0), Some(2.0)), row(None, None)];
        write(&path, &rows).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
    }

    #[test]
    fn small_figures_are_shown_to_a_hundredth() {
        let text = table(&[row(Some(0.934), Some(12.34))]);
        assert!(text.contains("| 0.93 ") && text.contains("| 12.3 "), "{text}");
    }

    #[test]
    fn table_says_met_missed_and_not_measured() {
        let text = table(&[row(Some(1.0), Some(10.0)), row(Some(9.0), Some(10.0)), row(None, Some(10.0))]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[0].contains("0.10") && lines[0].contains("| met"), "{text}");
        assert!(lines[1].contains("0.90") && lines[1].contains("| missed"), "{text}");
        assert!(lines[2].contains("| not measured"), "{text}");
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }
}
