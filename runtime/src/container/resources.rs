//! Limits: from the CRI's to the OCI's. A field that is 0 or empty says nothing, as the CRI has it.
//!
//! Called by `spec` and by UpdateContainerResources.

use super::spec::SpecError;
use k8s_cri::v1::LinuxContainerResources;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

/// The limits of a container.
///
/// # Errors
/// A limit that no kernel would take.
pub fn linux_resources(cri: &LinuxContainerResources) -> Result<LinuxResources, SpecError> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive("cpu_shares", cri.cpu_shares)?)
        .set_period(positive("cpu_period", cri.cpu_period)?)
        .set_quota(Some(cri.cpu_quota).filter(|q| *q != 0))
        .set_cpus(Some(cri.cpuset_cpus.clone()).filter(|s| !s.is_empty()))
        .set_mems(Some(cri.cpuset_mems.clone()).filter(|s| !s.is_empty()));

    let limit = positive("memory_limit_in_bytes", cri.memory_limit_in_bytes)?.map(u64::cast_signed);
    let swap = positive("memory_swap_limit_in_bytes", cri.memory_swap_limit_in_bytes)?.map(u64::cast_signed);
    let mut memory = LinuxMemory::default();
    // A limit without a word on swap allows none, as Kubernetes wants it.
    memory.set_limit(limit).set_swap(swap.or(limit));

    let hugepages = cri.hugepage_limits.iter().map(|l| {
        let mut limit = LinuxHugepageLimit::default();
        limit.set_page_size(l.page_size.clone()).set_limit(l.limit.cast_signed());
        limit
    });
    let hugepages: Vec<_> = hugepages.collect();

    let mut resources = LinuxResources::default();
    resources
        .set_devices(None)
        .set_cpu(Some(cpu))
        .set_memory(Some(memory))
        .set_hugepage_limits(Some(hugepages).filter(|h| !h.is_empty()))
        .set_unified(
            Some(cri.unified.clone().into_iter().collect())
                .filter(|u: &std::collections::HashMap<_, _>| !u.is_empty()),
        );
    Ok(resources)
}

fn positive(field: &'static str, value: i64) -> Result<Option<u64>, SpecError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => {
            Err(SpecError::Invalid { field, reason: format!("{value} is negative; 0 leaves it as it is") })
        }
    }
}

/// The limits after an update: what the update leaves open stays.
pub fn merge(current: &LinuxContainerResources, update: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |now: i64, new: i64| if new == 0 { now } else { new };
    let text = |now: &String, new: &String| if new.is_empty() { now.clone() } else { new.clone() };
    let mut merged = current.clone();
    merged.cpu_period = number(current.cpu_period, update.cpu_period);
    merged.cpu_quota = number(current.cpu_quota, update.cpu_quota);
    merged.cpu_shares = number(current.cpu_shares, update.cpu_shares);
    merged.memory_limit_in_bytes = number(current.memory_limit_in_bytes, update.memory_limit_in_bytes);
    merged.memory_swap_limit_in_bytes =
        number(current.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes);
    merged.oom_score_adj = number(current.oom_score_adj, update.oom_score_adj);
    merged.cpuset_cpus = text(&current.cpuset_cpus, &update.cpuset_cpus);
    merged.cpuset_mems = text(&current.cpuset_mems, &update.cpuset_mems);
    if !update.hugepage_limits.is_empty() {
        merged.hugepage_limits = update.hugepage_limits.clone();
    }
    merged.unified.extend(update.unified.clone());
    merged
}

/// CPU and memory limits that hold those of all together; one that is not set adds nothing.
pub fn together<'a>(all: impl Iterator<Item = &'a LinuxContainerResources>) -> LinuxContainerResources {
    const PERIOD: i64 = 100_000;
    let mut sum = LinuxContainerResources { cpu_period: PERIOD, ..Default::default() };
    for one in all {
        let bytes = one.memory_limit_in_bytes.max(0);
        sum.memory_limit_in_bytes = sum.memory_limit_in_bytes.saturating_add(bytes);
        if one.cpu_quota > 0 && one.cpu_period > 0 {
            let quota = one.cpu_quota.saturating_mul(PERIOD) / one.cpu_period;
            sum.cpu_quota = sum.cpu_quota.saturating_add(quota);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_limit_allows_no_swap_unless_said() {
        let cri =
            LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..LinuxContainerResources::default() };
        let memory = linux_resources(&cri).unwrap().memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(64 << 20)));
    }

    #[test]
    fn unset_fields_set_nothing_and_negative_limits_are_refused() {
        let none = linux_resources(&LinuxContainerResources::default()).unwrap();
        assert_eq!(none.cpu().as_ref().unwrap().shares(), None);
        let negative = LinuxContainerResources { cpu_shares: -1, ..LinuxContainerResources::default() };
        assert!(linux_resources(&negative).unwrap_err().to_string().contains("cpu_shares: -1"));
    }

    #[test]
    fn update_keeps_what_it_leaves_open() {
        let now = LinuxContainerResources {
            cpu_shares: 512,
            cpuset_cpus: "0".into(),
            ..LinuxContainerResources::default()
        };
        let new =
            LinuxContainerResources { memory_limit_in_bytes: 1 << 20, ..LinuxContainerResources::default() };
        let merged = merge(&now, &new);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes), (512, 1 << 20));
        assert_eq!(merged.cpuset_cpus, "0");
    }

    #[test]
    fn limits_together_are_the_sum_of_those_that_are_set() {
        let limits = |cpu_quota, cpu_period, memory_limit_in_bytes| LinuxContainerResources {
            cpu_quota,
            cpu_period,
            memory_limit_in_bytes,
            ..LinuxContainerResources::default()
        };
        let sum = together([limits(50_000, 100_000, 100), limits(0, 0, 0), limits(-1, 0, -1)].iter());
        assert_eq!((sum.cpu_quota, sum.memory_limit_in_bytes), (50_000, 100));
        let sum = together([limits(10_000, 20_000, i64::MAX), limits(100_000, 100_000, 1)].iter());
        assert_eq!((sum.cpu_quota, sum.cpu_period, sum.memory_limit_in_bytes), (150_000, 100_000, i64::MAX));
        assert_eq!(together([].iter()).cpu_quota, 0);
    }
}
