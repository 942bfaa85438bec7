//! Limits of a container or of a whole pod, as they were asked for.
//!
//! Used by `sandbox`, which sizes VMs by them, by `container`, which translates them for the guest, and by
//! `cri`, which answers them. Data only. A field that is 0 or empty sets nothing. CPU sets name CPUs and
//! memory nodes of the *node*.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Limits; 0 and empty set nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Length of a CPU period, microseconds.
    pub cpu_period: i64,
    /// CPU time in each period, microseconds; negative is no limit.
    pub cpu_quota: i64,
    /// Weight among others; negative is the most there can be.
    pub cpu_shares: i64,
    /// Bytes of memory; -1 is no limit.
    pub memory_limit_in_bytes: i64,
    /// Bytes of memory and swap together; -1 is no limit.
    pub memory_swap_limit_in_bytes: i64,
    /// Whom the kernel kills first for want of memory: -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPUs of the node, as `0-3,7`.
    pub cpuset_cpus: String,
    /// Memory nodes of the node.
    pub cpuset_mems: String,
    /// Limits of huge pages, one for each size.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Files of the cgroup by name, and what is written there.
    pub unified: BTreeMap<String, String>,
}

/// Limit of huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// The size, as the kernel names it: `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}
