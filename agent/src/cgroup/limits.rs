//! What an OCI `linux.resources` asks for, as values of cgroup v2 files. Pure; [`super::group`] writes them.
//!
//! What version 2 or the guest cannot do is refused, never dropped, with one exception: huge pages of sizes
//! that the guest does not have cannot be used, so their limits hold without being set (containerd ignores
//! all of them by default).

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

/// One value for one file of a container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// File name below the cgroup.
    pub file: String,
    /// What is written to it.
    pub value: String,
    /// A kernel without the feature has nothing to limit: no such file is success.
    pub optional: bool,
}

/// Resources that cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LimitsError {
    /// cgroup v2, or the guest, has no such thing.
    #[error("resource {0} cannot be limited in the guest: leave it out")]
    Unsupported(&'static str),
    /// A number that makes no sense.
    #[error("resource {field} cannot be {value}: {rule}")]
    Value {
        /// OCI name of the field.
        field: &'static str,
        /// What was asked.
        value: i64,
        /// What is allowed.
        rule: &'static str,
    },
    /// A `unified` key that is not a controller's file.
    #[error("unified resource {0:?} is not a file of a cgroup controller, such as memory.high")]
    UnifiedKey(String),
}

/// The values for `resources`, in the order in which they are to be written. `cpu_max` is the present content
/// of the file of that name, of which a quota or a period alone replaces one half.
pub fn limits(resources: &LinuxResources, cpu_max: &str) -> Result<Vec<Limit>, LimitsError> {
    refuse_unsupported(resources)?;
    let mut limits = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_limits(memory, &mut limits)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_limits(cpu, cpu_max, &mut limits)?;
    }
    if let Some(pids) = resources.pids() {
        // 0 is how older callers say that they say nothing.
        match pids.limit() {
            0 => {}
            count @ 1.. => push(&mut limits, "pids.max", count),
            _ => push(&mut limits, "pids.max", "max"),
        }
    }
    for page in resources.hugepage_limits().iter().flatten() {
        hugepage_limits(page, &mut limits);
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (key, value) in unified {
        if key.contains('/') || key.starts_with("cgroup.") || !key.contains('.') {
            return Err(LimitsError::UnifiedKey(key.clone()));
        }
        push(&mut limits, key, value);
    }
    Ok(limits)
}

fn push(limits: &mut Vec<Limit>, file: &str, value: impl ToString) {
    limits.push(Limit { file: file.to_owned(), value: value.to_string(), optional: false });
}

fn refuse_unsupported(resources: &LinuxResources) -> Result<(), LimitsError> {
    let memory = resources.memory().as_ref();
    let cpu = resources.cpu().as_ref();
    let refused = [
        ("blockIO", resources.block_io().is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty())),
        (
            "network",
            resources.network().as_ref().is_some_and(|n| n.class_id().is_some() || n.priorities().is_some()),
        ),
        ("memory.swappiness", memory.is_some_and(|m| m.swappiness().is_some())),
        ("memory.disableOOMKiller", memory.is_some_and(|m| m.disable_oom_killer() == Some(true))),
        (
            "cpu.realtimeRuntime",
            cpu.is_some_and(|c| {
                c.realtime_runtime().unwrap_or(0) != 0 || c.realtime_period().unwrap_or(0) != 0
            }),
        ),
    ];
    match refused.into_iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(LimitsError::Unsupported(name)),
        None => Ok(()),
    }
}

/// In the OCI spec 0 and absence mean "as it is" and -1 means no limit; swap counts memory and swap together.
fn memory_limits(memory: &LinuxMemory, limits: &mut Vec<Limit>) -> Result<(), LimitsError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        let value = match (swap, limit) {
            (-1, _) | (_, Some(-1)) => "max".to_owned(),
            (swap, Some(limit)) if swap >= limit => (swap - limit).to_string(),
            (swap, _) => {
                return Err(LimitsError::Value {
                    field: "memory.swap",
                    value: swap,
                    rule: "it counts memory and swap, so it needs a memory.limit that is not larger",
                });
            }
        };
        limits.push(Limit { file: "memory.swap.max".to_owned(), value, optional: true });
    }
    for (field, file, value) in
        [("memory.limit", "memory.max", limit), ("memory.reservation", "memory.low", memory.reservation())]
    {
        match value {
            None | Some(0) => {}
            Some(-1) => push(limits, file, "max"),
            Some(bytes) if bytes > 0 => push(limits, file, bytes),
            Some(value) => {
                return Err(LimitsError::Value { field, value, rule: "bytes, or -1 for no limit" });
            }
        }
    }
    Ok(())
}

fn cpu_limits(cpu: &LinuxCpu, cpu_max: &str, limits: &mut Vec<Limit>) -> Result<(), LimitsError> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        push(limits, "cpu.weight", weight(shares));
    }
    if let Some(idle) = cpu.idle() {
        push(limits, "cpu.idle", idle);
    }
    let (old_quota, old_period) = cpu_max.trim().split_once(' ').unwrap_or(("max", "100000"));
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            None => old_quota.to_owned(),
            Some(-1) => "max".to_owned(),
            Some(us) if us > 0 => us.to_string(),
            Some(value) => {
                let rule = "microseconds per period, or -1 for no limit";
                return Err(LimitsError::Value { field: "cpu.quota", value, rule });
            }
        };
        let period = period.map_or_else(|| old_period.to_owned(), |us| us.to_string());
        push(limits, "cpu.max", format!("{quota} {period}"));
    }
    if let Some(burst) = cpu.burst() {
        push(limits, "cpu.max.burst", burst);
    }
    for (file, set) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
            push(limits, file, set);
        }
    }
    Ok(())
}

/// Shares of cgroup v1 (2 to 262144, usually 1024) as a weight of v2 (1 to 10000, usually 100): the curve
/// through (2, 1), (1024, 100) and (262144, 10000) in log-log space on which Kubernetes and the OCI runtimes
/// agreed (KEP-2254 as amended in 2025).
fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn hugepage_limits(page: &LinuxHugepageLimit, limits: &mut Vec<Limit>) {
    let size = page.page_size();
    if size.is_empty() || !size.chars().all(|c| c.is_ascii_alphanumeric()) {
        // No kernel has pages of that size.
        return;
    }
    // The second counts reservations, so that a program fails at mmap and not by a signal at first touch.
    for file in [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")] {
        limits.push(Limit { file, value: page.limit().to_string(), optional: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<Vec<(String, String)>, LimitsError> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let limits = limits(&resources, "50000 100000\n")?;
        Ok(limits.into_iter().map(|limit| (limit.file, limit.value)).collect())
    }

    fn one(file: &str, value: &str) -> Vec<(String, String)> {
        vec![(file.to_owned(), value.to_owned())]
    }

    #[test]
    fn absent_resources_change_nothing() {
        assert_eq!(written("{}"), Ok(vec![]));
        assert_eq!(
            written(r#"{"memory":{"limit":0},"cpu":{"shares":0,"quota":0},"pids":{"limit":0}}"#),
            Ok(vec![])
        );
    }

    #[test]
    fn swap_is_what_exceeds_memory() {
        let expected: Vec<(String, String)> = [("memory.swap.max", "50"), ("memory.max", "100")]
            .map(|(f, v)| (f.to_owned(), v.to_owned()))
            .into();
        assert_eq!(written(r#"{"memory":{"limit":100,"swap":150}}"#), Ok(expected));
        assert!(matches!(written(r#"{"memory":{"swap":150}}"#), Err(LimitsError::Value { .. })));
        assert!(matches!(written(r#"{"memory":{"limit":200,"swap":150}}"#), Err(LimitsError::Value { .. })));
    }

    #[test]
    fn minus_one_lifts_a_limit() {
        assert_eq!(written(r#"{"memory":{"limit":-1}}"#), Ok(one("memory.max", "max")));
        assert_eq!(written(r#"{"cpu":{"quota":-1}}"#), Ok(one("cpu.max", "max 100000")));
        assert_eq!(written(r#"{"pids":{"limit":-1}}"#), Ok(one("pids.max", "max")));
        assert!(matches!(written(r#"{"memory":{"limit":-2}}"#), Err(LimitsError::Value { .. })));
    }

    #[test]
    fn period_alone_keeps_the_quota() {
        assert_eq!(written(r#"{"cpu":{"period":20000}}"#), Ok(one("cpu.max", "50000 20000")));
    }

    #[test]
    fn shares_become_weights_at_the_agreed_points() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 100, 10_000, 10_000]);
    }

    #[test]
    fn unified_key_that_leaves_the_cgroup_is_refused() {
        for key in ["../memory.max", "cgroup.procs", "memory"] {
            let json = format!(r#"{{"unified":{{"{key}":"1"}}}}"#);
            assert_eq!(written(&json), Err(LimitsError::UnifiedKey(key.to_owned())));
        }
        assert_eq!(written(r#"{"unified":{"memory.high":"9"}}"#), Ok(one("memory.high", "9")));
    }

    #[test]
    fn pages_of_a_size_that_no_guest_has_are_no_reason_to_refuse() {
        let asked: LinuxResources = serde_json::from_str(
            r#"{"hugepageLimits":[{"pageSize":"1GB","limit":5},{"pageSize":"../x","limit":1}]}"#,
        )
        .unwrap();
        let limits = limits(&asked, "").unwrap();
        assert!(limits.len() == 2 && limits.iter().all(|limit| limit.optional), "{limits:?}");
    }

    #[test]
    fn what_version_2_lacks_is_refused_by_name() {
        assert_eq!(
            written(r#"{"memory":{"swappiness":10}}"#),
            Err(LimitsError::Unsupported("memory.swappiness"))
        );
        assert_eq!(written(r#"{"blockIO":{"weight":10}}"#), Err(LimitsError::Unsupported("blockIO")));
    }
}
