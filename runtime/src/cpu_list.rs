//! Sets of CPUs and memory nodes in the kernel's notation (`0-3,7`), as kubelet's CPU and memory managers name those of the
//! node. Pure, but for reading which of them the node has.
//!
//! Used by `container` for limits, by `sandbox` for a VM's size, by `cgroup` for its place on the node.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// No kernel has as many.
const LARGEST: u32 = 65_535;

/// Why a text is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of numbers and ranges such as 0-3,7")]
pub struct BadList(String);

/// A set of numbers of CPUs or memory nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuList(BTreeSet<u32>);

impl CpuList {
    /// The list that the kernel shows in a file; none where that cannot be read.
    pub fn of_node(path: &Path) -> Option<Self> {
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds those of another.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Those that are in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }
}

impl FromStr for CpuList {
    type Err = BadList;

    fn from_str(text: &str) -> Result<Self, BadList> {
        let bad = || BadList(text.chars().take(100).collect());
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|number: &u32| digits && *number <= LARGEST).ok_or_else(bad)
        };
        let mut set = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            set.extend(first..=last);
        }
        Ok(Self(set))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_and_ranges_are_read() {
        assert_eq!(list("0-3,7").to_string(), "0,1,2,3,7");
        assert_eq!((list("0-63").len(), list("2,2-3").len()), (64, 2));
    }

    #[test]
    fn nonsense_is_refused_with_its_text() {
        for text in ["", "x", "1-", "-1", "3-1", "1,,2", "0-99999999", "+1", " 1", "1;2", "4294967296"] {
            let error = text.parse::<CpuList>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn sets_are_joined_and_cut() {
        let mut set = list("0-1");
        set.extend(&list("1-4"));
        assert_eq!(set.to_string(), "0,1,2,3,4");
        assert!(set.intersection(&list("8-9")).is_empty());
        assert_eq!(set.intersection(&list("4-9")), list("4"));
    }
}
