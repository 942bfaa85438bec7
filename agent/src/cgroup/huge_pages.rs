//! Huge pages for containers that have a limit of them: a guest sets none aside, so the kernel may make as
//! many as limits add up to, of memory that is free when a program maps them.
//!
//! Called by `container::create`. The limits themselves are the cgroup's (`limits`), where a container that
//! asks for none may have none. The number is not taken back with a container: other containers have limits
//! of their own, and a page that nobody maps costs nothing.

use oci_spec::runtime::{LinuxHugepageLimit, LinuxResources};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Where the kernel has a directory for each size (Documentation/admin-guide/mm/hugetlbpage.rst).
const SIZES: &str = "/sys/kernel/mm/hugepages";

/// Lets the kernel make the pages that a container with these limits may have. Sizes that the kernel lacks
/// are passed over, as their limits are.
pub fn offer(resources: &LinuxResources) -> io::Result<()> {
    resources.hugepage_limits().iter().flatten().try_for_each(|limit| offer_size(Path::new(SIZES), limit))
}

fn offer_size(sizes: &Path, limit: &LinuxHugepageLimit) -> io::Result<()> {
    let Some(bytes) = page_bytes(limit.page_size()) else { return Ok(()) };
    let pages = u64::try_from(limit.limit()).unwrap_or(0) / bytes;
    let file: PathBuf = sizes.join(format!("hugepages-{}kB/nr_overcommit_hugepages", bytes >> 10));
    if pages == 0 || !file.exists() {
        return Ok(());
    }
    let offered: u64 = fs::read_to_string(&file)?.trim().parse().map_err(io::Error::other)?;
    // The kernel keeps it as a signed long.
    let offered = offered.saturating_add(pages).min(i64::MAX.cast_unsigned());
    fs::write(file, offered.to_string())
}

/// Bytes of a page by its name in cgroups and the CRI: a number and KB, MB or GB.
fn page_bytes(name: &str) -> Option<u64> {
    let (number, unit) = name.split_at(name.find(|c: char| !c.is_ascii_digit())?);
    let unit: u64 = match unit {
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok().filter(|number| *number > 0)?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_add_up_to_what_the_kernel_may_make() {
        let sizes = tempfile::tempdir().unwrap();
        let size = sizes.path().join("hugepages-2048kB");
        fs::create_dir(&size).unwrap();
        let file = size.join("nr_overcommit_hugepages");
        fs::write(&file, "0\n").unwrap();
        for (name, limit, expected) in [
            ("2MB", 16 << 20, "8"),
            ("2MB", (3 << 20) - 1, "9"),
            ("1GB", 1 << 30, "9"),
            ("2MB", 0, "9"),
            ("2MB", -1, "9"),
            ("../MB", 1 << 30, "9"),
            ("2MB", i64::MAX, "4398046511112"),
        ] {
            let mut asked = LinuxHugepageLimit::default();
            asked.set_page_size(name.to_owned()).set_limit(limit);
            offer_size(sizes.path(), &asked).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap().trim(), expected, "{name} {limit}");
        }
    }

    #[test]
    fn sizes_are_read_by_name() {
        let names = ["64KB", "2MB", "1GB", "0MB", "MB", "2", "2MiB", "18446744073709551615GB"];
        let expected = [Some(64 << 10), Some(2 << 20), Some(1 << 30), None, None, None, None, None];
        assert_eq!(names.map(page_bytes), expected);
    }
}
