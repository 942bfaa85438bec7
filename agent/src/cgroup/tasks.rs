//! How many tasks containers may have. A task is a process, or one thread of it.
//!
//! The kernel has one bound for the whole guest (`kernel.threads-max`), under which its own threads and the
//! agent's count, too. If containers could reach it, the agent could start neither a thread nor a child, and
//! would end, and the VM with it. So the containers together have as many as the kernel allows for of itself,
//! and the kernel's bound is raised above that. One container has fewer: an exec or a new process of another
//! one needs a task as well.
//!
//! Called by `init`, and before a container is made or gets new limits: memory may have grown by then, and
//! the kernel looks at it once, at its boot. It must not be called by two threads at a time.

use super::layout;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of memory for each task, as the kernel counts at its boot (`fork_init`): stacks take an eighth of
/// all memory at most.
const MEMORY_PER_TASK: u64 = 128 << 10;

/// Tasks that are nobody's in a container: the agent's threads (512 and few), as many one-shot children, and
/// the kernel's.
const RESERVE: u64 = 2048;

/// Bounds the tasks of all containers together by the guest's memory as it is now, and those of each
/// container that asked for no bound. On failure answers the file that could not be read or written.
pub fn bound() -> Result<(), (PathBuf, io::Error)> {
    bound_in(Path::new("/proc"), Path::new(layout::CONTAINERS))
}

/// The bound of a container that asks for none.
pub fn of_one_container() -> Result<u64, (PathBuf, io::Error)> {
    let file = Path::new(layout::CONTAINERS).join("pids.max");
    number(&file, &read(&file)?).map(share)
}

fn bound_in(proc: &Path, containers: &Path) -> Result<(), (PathBuf, io::Error)> {
    let numbers = proc.join("sys/kernel/pid_max");
    let most = most(memory(&proc.join("meminfo"))?, number(&numbers, &read(&numbers)?)?);
    let file = containers.join("pids.max");
    // None is "max", before the first time.
    let before: Option<u64> = read(&file)?.trim().parse().ok();
    if before == Some(most) {
        return Ok(());
    }
    write(&proc.join("sys/kernel/threads-max"), most + RESERVE)?;
    write(&file, most)?;
    let Some(before) = before else { return Ok(()) };
    let groups = fs::read_dir(containers).map_err(|error| (containers.to_owned(), error))?;
    for group in groups.flatten() {
        let file = group.path().join("pids.max");
        // Files of this directory have none, and other values were asked for.
        if fs::read_to_string(&file).is_ok_and(|text| text.trim() == share(before).to_string()) {
            write(&file, share(most))?;
        }
    }
    Ok(())
}

/// Tasks of all containers, for bytes of memory and as many numbers for tasks as the kernel gives out.
fn most(memory: u64, numbers: u64) -> u64 {
    (memory / MEMORY_PER_TASK).min(numbers.saturating_sub(RESERVE))
}

/// What one container has of the tasks of all.
fn share(all: u64) -> u64 {
    all - all / 8
}

/// Bytes of memory that the kernel uses.
fn memory(meminfo: &Path) -> Result<u64, (PathBuf, io::Error)> {
    let text = read(meminfo)?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    Ok(number(meminfo, total.unwrap_or_default().trim_end_matches("kB"))?.saturating_mul(1024))
}

fn number(file: &Path, text: &str) -> Result<u64, (PathBuf, io::Error)> {
    text.trim().parse().map_err(|error| (file.to_owned(), io::Error::other(error)))
}

fn read(file: &Path) -> Result<String, (PathBuf, io::Error)> {
    fs::read_to_string(file).map_err(|error| (file.to_owned(), error))
}

fn write(file: &Path, value: u64) -> Result<(), (PathBuf, io::Error)> {
    fs::write(file, value.to_string()).map_err(|error| (file.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Guest(tempfile::TempDir);

    impl Guest {
        fn new(memory_mib: u64) -> Guest {
            let guest = Guest(tempfile::tempdir().unwrap());
            for directory in ["sys/kernel", "containers"] {
                fs::create_dir_all(guest.path(directory)).unwrap();
            }
            fs::write(guest.path("sys/kernel/pid_max"), "4194304\n").unwrap();
            fs::write(guest.path("containers/pids.max"), "max\n").unwrap();
            guest.has(memory_mib);
            guest
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn has(&self, memory_mib: u64) {
            let text = format!("MemTotal:  {} kB\nMemFree:  7 kB\n", memory_mib << 10);
            fs::write(self.path("meminfo"), text).unwrap();
        }

        fn container(&self, id: &str, bound: &str) {
            fs::create_dir(self.path("containers").join(id)).unwrap();
            fs::write(self.path(&format!("containers/{id}/pids.max")), bound).unwrap();
        }

        fn bound(&self) {
            bound_in(self.0.path(), &self.path("containers")).unwrap();
        }

        fn value(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap().trim().to_owned()
        }
    }

    #[test]
    fn containers_never_have_all_tasks_of_the_guest() {
        for memory_mib in [64, 256, 4096, 1 << 20] {
            let guest = Guest::new(memory_mib);
            guest.bound();
            let value = |name: &str| guest.value(name).parse::<u64>().unwrap();
            let (all, kernels) = (value("containers/pids.max"), value("sys/kernel/threads-max"));
            assert!(all + RESERVE <= kernels && kernels <= 4 << 20, "{memory_mib} MiB: {all} of {kernels}");
            assert!(share(all) < all && share(all) > all / 2, "{memory_mib} MiB: {all}");
        }
        let guest = Guest::new(256);
        guest.bound();
        assert_eq!(guest.value("containers/pids.max"), "2048");
    }

    #[test]
    fn bounds_follow_memory_but_for_containers_with_bounds_of_their_own() {
        let guest = Guest::new(256);
        guest.bound();
        for (id, bound) in [("none", "1792\n"), ("few", "20\n"), ("lifted", "max\n")] {
            guest.container(id, bound);
        }
        guest.has(1024);
        guest.bound();
        assert_eq!(guest.value("containers/pids.max"), "8192");
        assert_eq!(guest.value("sys/kernel/threads-max"), "10240");
        let bounds = ["none", "few", "lifted"].map(|id| guest.value(&format!("containers/{id}/pids.max")));
        assert_eq!(bounds, ["7168", "20", "max"]);
    }

    #[test]
    fn file_that_is_missing_or_no_number_is_named() {
        let guest = Guest::new(256);
        fs::write(guest.path("meminfo"), "MemFree: 7 kB\n").unwrap();
        let (file, _) = bound_in(guest.0.path(), &guest.path("containers")).unwrap_err();
        assert_eq!(file, guest.path("meminfo"));
        let (file, _) = bound_in(guest.0.path(), &guest.path("elsewhere")).unwrap_err();
        assert_eq!(file, guest.path("meminfo"));
        guest.has(256);
        let (file, _) = bound_in(guest.0.path(), &guest.path("elsewhere")).unwrap_err();
        assert_eq!(file, guest.path("elsewhere/pids.max"));
    }
}
