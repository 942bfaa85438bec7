//! Limits: from what was asked for to what the guest's kernel is told. What containerd and runc accept is
//! accepted: shares out of range, swap where the guest has none, huge pages of any size.
//!
//! `cpuset_cpus` and `cpuset_mems` name CPUs and memory nodes of the *node*. They are checked here and do not
//! go to the guest, which has others: their number sizes the VM ([`together`]), and the VM's threads run
//! there ([`place`]). `oom_score_adj` counts twice: in the guest for the container's processes, and on the
//! node for the VM ([`oom_score()`]).
//!
//! Called by `request`, `update` and `create`.

use crate::cpu_list::{BadList, CpuList};
use crate::oom_score;
use crate::resources::Resources;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

/// A limit that no kernel takes.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct LimitError {
    /// The field of [`Resources`].
    field: &'static str,
    /// What is wrong with it and what to do.
    reason: String,
}

/// The limits of a container, without rules for devices.
///
/// # Errors
/// A limit that no kernel would take.
pub fn linux_resources(asked: &Resources) -> Result<LinuxResources, LimitError> {
    list("cpuset_cpus", &asked.cpuset_cpus)?;
    list("cpuset_mems", &asked.cpuset_mems)?;
    // Negative shares are the most there can be, as in containerd, whose number has no sign.
    let shares = u64::try_from(asked.cpu_shares).unwrap_or(u64::MAX);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(shares).filter(|shares| *shares != 0))
        .set_period(positive("cpu_period", asked.cpu_period)?)
        .set_quota(Some(asked.cpu_quota).filter(|q| *q != 0));

    let limit = match asked.memory_limit_in_bytes {
        -1 => Some(-1),
        limit => positive("memory_limit_in_bytes", limit)?.map(u64::cast_signed),
    };
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit).set_swap(swap(limit, asked.memory_swap_limit_in_bytes));

    let hugepages = asked.hugepage_limits.iter().map(|l| {
        let mut limit = LinuxHugepageLimit::default();
        limit.set_page_size(l.page_size.clone()).set_limit(i64::try_from(l.limit).unwrap_or(i64::MAX));
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
            Some(asked.unified.clone().into_iter().collect())
                .filter(|u: &std::collections::HashMap<_, _>| !u.is_empty()),
        );
    Ok(resources)
}

/// A limit without a word on swap allows none, as Kubernetes wants it. The guest has no swap: what makes no sense beside the
/// memory limit is left out, as containerd does on a node without swap.
fn swap(limit: Option<i64>, asked: i64) -> Option<i64> {
    match (limit, asked) {
        (_, -1) => Some(-1),
        (Some(limit), asked) if limit > 0 && asked >= limit => Some(asked),
        _ => limit,
    }
}

fn list(field: &'static str, text: &str) -> Result<Option<CpuList>, LimitError> {
    if text.is_empty() {
        return Ok(None);
    }
    let list = text.parse().map_err(|error: BadList| LimitError { field, reason: error.to_string() })?;
    Ok(Some(list))
}

fn positive(field: &'static str, value: i64) -> Result<Option<u64>, LimitError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(LimitError { field, reason: format!("{value} is negative; 0 leaves it as it is") }),
    }
}

/// The limits after an update: what the update leaves open stays.
pub fn merge(current: &Resources, update: &Resources) -> Resources {
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

/// CPU and memory limits that hold those of all together; one that is not set adds nothing. CPUs of the node count where no
/// quota says less: a set once, also where several containers share it, as those of kubelet's shared pool do.
pub fn together<'a>(all: impl Iterator<Item = &'a Resources>) -> Resources {
    const PERIOD: i64 = 100_000;
    let mut sum = Resources { cpu_period: PERIOD, ..Default::default() };
    let mut sets = CpuList::default();
    let cpus = |set: &CpuList| i64::try_from(set.len()).unwrap_or(i64::MAX).saturating_mul(PERIOD);
    for one in all {
        let bytes = one.memory_limit_in_bytes.max(0);
        sum.memory_limit_in_bytes = sum.memory_limit_in_bytes.saturating_add(bytes);
        let set: Option<CpuList> = one.cpuset_cpus.parse().ok();
        if one.cpu_quota > 0 && one.cpu_period > 0 {
            let quota = one.cpu_quota.saturating_mul(PERIOD) / one.cpu_period;
            let quota = set.map_or(quota, |set| quota.min(cpus(&set)));
            sum.cpu_quota = sum.cpu_quota.saturating_add(quota);
        } else if let Some(set) = set {
            sets.extend(&set);
        }
    }
    sum.cpu_quota = sum.cpu_quota.saturating_add(cpus(&sets));
    sum
}

/// The CPUs and memory nodes of the node that containers with these limits may use together. None is all: one container
/// without a set may run anywhere. Under kubelet's static CPU manager every container has a set, its own or the shared
/// pool, so a pod with an exclusive CPU stays off the others.
pub fn place<'a>(all: impl Iterator<Item = &'a Resources>) -> (Option<CpuList>, Option<CpuList>) {
    let (mut cpus, mut mems) = (Some(CpuList::default()), Some(CpuList::default()));
    for one in all {
        for (union, text) in [(&mut cpus, &one.cpuset_cpus), (&mut mems, &one.cpuset_mems)] {
            match (union.as_mut(), text.parse::<CpuList>()) {
                (Some(union), Ok(set)) => union.extend(&set),
                _ => *union = None,
            }
        }
    }
    let some = |set: Option<CpuList>| set.filter(|set| !set.is_empty());
    (some(cpus), some(mems))
}

/// The `oom_score_adj` of the VM that holds containers with these limits: the lowest of theirs, as killing
/// the VM ends all of them. Without any it holds nothing and goes first. 0 is a score like others: it is what
/// whoever says nothing has, `crictl` as a rule.
pub fn oom_score<'a>(all: impl Iterator<Item = &'a Resources>) -> i32 {
    let lowest = all.map(|one| one.oom_score_adj).min().unwrap_or(oom_score::FIRST.into());
    let clamped = lowest.clamp(oom_score::LOWEST.into(), oom_score::FIRST.into());
    i32::try_from(clamped).expect("it is between two of that type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::HugepageLimit;

    #[test]
    fn memory_limit_allows_no_swap_unless_said() {
        let asked = Resources { memory_limit_in_bytes: 64 << 20, ..Resources::default() };
        let memory = linux_resources(&asked).unwrap().memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(64 << 20)));
    }

    #[test]
    fn unset_fields_set_nothing_and_negative_limits_are_refused() {
        let none = linux_resources(&Resources::default()).unwrap();
        assert_eq!(none.cpu().as_ref().unwrap().shares(), None);
        let negative = Resources { cpu_period: -1, ..Resources::default() };
        assert!(linux_resources(&negative).unwrap_err().to_string().contains("cpu_period: -1"));
    }

    #[test]
    fn limits_that_containerd_accepts_are_accepted() {
        let limits = |shares, limit, swap| {
            let asked = Resources {
                cpu_shares: shares,
                memory_limit_in_bytes: limit,
                memory_swap_limit_in_bytes: swap,
                hugepage_limits: vec![HugepageLimit { page_size: "1GB".into(), limit: u64::MAX }],
                ..Resources::default()
            };
            let limits = linux_resources(&asked).unwrap();
            assert_eq!(limits.hugepage_limits().as_ref().unwrap()[0].limit(), i64::MAX);
            let memory = limits.memory().unwrap();
            (limits.cpu().as_ref().unwrap().shares(), memory.limit(), memory.swap())
        };
        assert_eq!(limits(-1, -1, 0), (Some(u64::MAX), Some(-1), Some(-1)));
        assert_eq!(limits(1, 100, 50), (Some(1), Some(100), Some(100)), "less than the memory");
        assert_eq!(limits(0, 0, 50), (None, None, None), "nothing to add it to");
        assert_eq!(limits(0, 100, 150), (None, Some(100), Some(150)));
    }

    fn on(cpus: &str, mems: &str, cpu_quota: i64) -> Resources {
        Resources {
            cpuset_cpus: cpus.into(),
            cpuset_mems: mems.into(),
            cpu_period: 100_000,
            cpu_quota,
            ..Resources::default()
        }
    }

    #[test]
    fn sets_of_the_node_do_not_go_to_the_guest_and_nonsense_is_refused() {
        let limits = linux_resources(&on("4-7", "1", 0)).unwrap();
        let cpu = limits.cpu().as_ref().unwrap();
        assert_eq!((cpu.cpus(), cpu.mems()), (&None, &None));
        for (bad, field) in [(on("4-x", "", 0), "cpuset_cpus"), (on("", "1,,2", 0), "cpuset_mems")] {
            let error = linux_resources(&bad).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains("is no list"), "{error}");
        }
    }

    #[test]
    fn cpus_of_the_node_count_once_and_a_quota_says_less() {
        let cpus = |all: &[Resources]| together(all.iter()).cpu_quota / 1000;
        assert_eq!(cpus(&[on("4-7", "", 0)]), 400);
        assert_eq!(cpus(&[on("4-7", "", -1), on("6-9", "", 0)]), 600);
        assert_eq!(cpus(&[on("0-63", "", 50_000), on("2", "", 0)]), 150);
        assert_eq!(cpus(&[on("2-3", "", 1_000_000)]), 200);
    }

    #[test]
    fn place_is_the_union_and_one_without_a_set_may_run_anywhere() {
        let of = |all: &[Resources]| {
            let (cpus, mems) = place(all.iter());
            (cpus.map(|set| set.to_string()), mems.map(|set| set.to_string()))
        };
        assert_eq!(of(&[on("2", "0", 0), on("5", "1", 0)]), (Some("2,5".into()), Some("0,1".into())));
        assert_eq!(of(&[on("2", "0", 0), on("", "1", 0)]), (None, Some("0,1".into())));
        assert_eq!(of(&[]), (None, None));
    }

    #[test]
    fn oom_score_is_the_lowest_and_without_containers_the_highest() {
        let of = |scores: &[i64]| {
            let limits = |score: &i64| Resources { oom_score_adj: *score, ..Resources::default() };
            oom_score(scores.iter().map(limits).collect::<Vec<_>>().iter())
        };
        assert_eq!(of(&[]), 1000);
        assert_eq!(of(&[1000]), 1000);
        assert_eq!(of(&[1000, -998, 2]), -998);
        assert_eq!(of(&[1000, 0]), 0, "one that says nothing");
        assert_eq!(of(&[-1000]), -999, "its cgroup's limit must still end it");
        assert_eq!((of(&[i64::MIN]), of(&[i64::MAX])), (-999, 1000));
    }

    #[test]
    fn update_keeps_what_it_leaves_open() {
        let now = Resources { cpu_shares: 512, cpuset_cpus: "0".into(), ..Resources::default() };
        let new = Resources { memory_limit_in_bytes: 1 << 20, ..Resources::default() };
        let merged = merge(&now, &new);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes), (512, 1 << 20));
        assert_eq!(merged.cpuset_cpus, "0");
    }

    #[test]
    fn limits_together_are_the_sum_of_those_that_are_set() {
        let limits = |cpu_quota, cpu_period, memory_limit_in_bytes| Resources {
            cpu_quota,
            cpu_period,
            memory_limit_in_bytes,
            ..Resources::default()
        };
        let sum = together([limits(50_000, 100_000, 100), limits(0, 0, 0), limits(-1, 0, -1)].iter());
        assert_eq!((sum.cpu_quota, sum.memory_limit_in_bytes), (50_000, 100));
        let sum = together([limits(10_000, 20_000, i64::MAX), limits(100_000, 100_000, 1)].iter());
        assert_eq!((sum.cpu_quota, sum.cpu_period, sum.memory_limit_in_bytes), (150_000, 100_000, i64::MAX));
        assert_eq!(together([].iter()).cpu_quota, 0);
    }
}
