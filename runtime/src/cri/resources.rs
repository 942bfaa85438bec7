//! Limits between the CRI's words and the runtime's: field by field.

use crate::resources::{HugepageLimit, Resources};
use isopod_protocols::cri as v1;

/// As the runtime keeps them.
pub fn from_cri(cri: v1::LinuxContainerResources) -> Resources {
    let hugepage =
        |limit: v1::HugepageLimit| HugepageLimit { page_size: limit.page_size, limit: limit.limit };
    Resources {
        cpu_period: cri.cpu_period,
        cpu_quota: cri.cpu_quota,
        cpu_shares: cri.cpu_shares,
        memory_limit_in_bytes: cri.memory_limit_in_bytes,
        memory_swap_limit_in_bytes: cri.memory_swap_limit_in_bytes,
        oom_score_adj: cri.oom_score_adj,
        cpuset_cpus: cri.cpuset_cpus,
        cpuset_mems: cri.cpuset_mems,
        hugepage_limits: cri.hugepage_limits.into_iter().map(hugepage).collect(),
        unified: cri.unified.into_iter().collect(),
    }
}

/// As the CRI answers them.
pub fn to_cri(resources: Resources) -> v1::LinuxContainerResources {
    let hugepage =
        |limit: HugepageLimit| v1::HugepageLimit { page_size: limit.page_size, limit: limit.limit };
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_in_bytes,
        memory_swap_limit_in_bytes: resources.memory_swap_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        hugepage_limits: resources.hugepage_limits.into_iter().map(hugepage).collect(),
        unified: resources.unified.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_comes_back() {
        let cri = v1::LinuxContainerResources {
            cpu_period: 1,
            cpu_quota: -2,
            cpu_shares: 3,
            memory_limit_in_bytes: 4,
            memory_swap_limit_in_bytes: 5,
            oom_score_adj: -6,
            cpuset_cpus: "7".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 8 }],
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        };
        assert_eq!(to_cri(from_cri(cri.clone())), cri);
    }
}
