//! How many of the guest's processors are in use.
//!
//! The kernel knows the places of all processors that the VM may ever have (the VMM's ACPI tables) and brings
//! up those that the VM boots with. The others come up, and go again, by sysfs. The first one always stays.

use crate::event_loop::blocking;
use isopod_protocols::agent::{UseProcessorsRequest, UseProcessorsResponse};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The kernel's directory of processors.
const DIRECTORY: &str = "/sys/devices/system/cpu";

/// Why the processors in use are not those that were asked for.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorsError {
    /// None at all, or more than there are places.
    #[error("count must be from 1 to {most}, which is how many processors this VM may have; got {count}")]
    Count {
        /// What was asked for.
        count: u32,
        /// Places.
        most: u32,
    },
    /// The kernel does not list its processors, or refuses one.
    #[error("{path} cannot be read or written")]
    Path {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Answers `UseProcessors`. A processor takes some milliseconds to come up, so this is not done on the
/// agent's only thread.
pub async fn use_processors(request: UseProcessorsRequest) -> Result<UseProcessorsResponse, ProcessorsError> {
    blocking(move || apply(Path::new(DIRECTORY), request.count)).await?;
    Ok(UseProcessorsResponse {})
}

fn apply(directory: &Path, count: u32) -> Result<(), ProcessorsError> {
    let failed = |path: PathBuf| move |source| ProcessorsError::Path { path, source };
    let listed = directory.join("possible");
    let most = count_of(&fs::read_to_string(&listed).map_err(failed(listed))?);
    if !(1..=most).contains(&count) {
        return Err(ProcessorsError::Count { count, most });
    }
    for number in 1..most {
        let switch = directory.join(format!("cpu{number}/online"));
        let wanted = if number < count { "1" } else { "0" };
        let now = fs::read_to_string(&switch).map_err(failed(switch.clone()))?;
        if now.trim() != wanted {
            fs::write(&switch, wanted).map_err(failed(switch))?;
        }
    }
    Ok(())
}

/// How many processors a list of the kernel names that has no gaps: `0-3` or `0`.
fn count_of(list: &str) -> u32 {
    let last = list.trim().rsplit('-').next().and_then(|last| last.parse::<u32>().ok());
    last.map_or(1, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(possible: &str, online: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("possible"), possible).unwrap();
        for (number, state) in (1..).zip(online.chars()) {
            let processor = directory.path().join(format!("cpu{number}"));
            fs::create_dir(&processor).unwrap();
            fs::write(processor.join("online"), format!("{state}\n")).unwrap();
        }
        directory
    }

    fn online(directory: &Path) -> String {
        let state = |number| fs::read_to_string(directory.join(format!("cpu{number}/online")));
        (1..).map_while(|number| state(number).ok()).map(|state| state.trim().to_owned()).collect()
    }

    #[test]
    fn so_many_are_in_use_as_were_asked_for() {
        let machine = machine("0-3\n", "000");
        for (count, expected) in [(1, "000"), (3, "110"), (4, "111"), (2, "100"), (1, "000")] {
            apply(machine.path(), count).unwrap();
            assert_eq!(online(machine.path()), expected);
        }
    }

    #[test]
    fn counts_that_cannot_be_are_refused() {
        let machine = machine("0-1\n", "0");
        for count in [0, 3, u32::MAX] {
            assert!(matches!(apply(machine.path(), count), Err(ProcessorsError::Count { most: 2, .. })));
        }
    }

    #[test]
    fn only_processor_has_no_switch() {
        let machine = machine("0\n", "");
        apply(machine.path(), 1).unwrap();
        assert!(matches!(apply(machine.path(), 2), Err(ProcessorsError::Count { most: 1, .. })));
    }
}
