//! Which processes of the host are a pod's, and which hold what all pods share.
//!
//! A pod's are those in its control group and those that name its id: a shim is in its daemon's group. /proc is read once
//! for all pods, since that takes long where there are hundreds of processes.

use super::side::Side;
use crate::cri::Pod;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Processes by their ids.
pub type Pids = BTreeSet<u32>;

/// A process and its command line.
struct Command {
    pid: u32,
    words: Vec<Vec<u8>>,
}

/// The processes of each pod, with kernel threads that work for it.
pub fn of_pods(side: &Side<'_>, pods: &[Pod]) -> Result<Vec<Pids>> {
    let commands = commands()?;
    pods.iter()
        .map(|pod| {
            let mut pids = named(&pod.id, &commands);
            in_cgroup(&side.cgroup_of(pod.name()?), &mut pids)?;
            ensure!(!pids.is_empty(), "pod {} has no process", pod.id);
            Ok(pids)
        })
        .collect()
}

/// The processes that hold templates of this side; none where it has no such thing.
pub fn template_holders(side: &Side<'_>) -> Result<Pids> {
    let Some(holder) = side.template_holder else { return Ok(Pids::new()) };
    let holds = |command: &Command| command.words.first().is_some_and(|word| word == holder.as_bytes());
    Ok(commands()?.iter().filter(|command| holds(command)).map(|command| command.pid).collect())
}

fn named(id: &str, commands: &[Command]) -> Pids {
    let names = |command: &&Command| command.words.iter().any(|word| word == id.as_bytes());
    commands.iter().filter(names).map(|command| command.pid).collect()
}

/// All processes in a control group and below it.
fn in_cgroup(group: &Path, pids: &mut Pids) -> Result<()> {
    let listed =
        fs::read_to_string(group.join("cgroup.procs")).with_context(|| group.display().to_string())?;
    pids.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            in_cgroup(&entry.path(), pids)?;
        }
    }
    Ok(())
}

fn commands() -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // it may have ended meanwhile
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        commands.push(Command { pid, words: line.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect() });
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(pid: u32, line: &[u8]) -> Command {
        Command { pid, words: line.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect() }
    }

    #[test]
    fn process_is_a_pods_where_the_id_is_a_whole_word() {
        let commands = [
            command(1, b"shim\0-id\0abc\0-address\0/run/s\0"),
            command(2, b"shim\0-id\0abcd\0"),
            command(3, b""),
        ];
        assert_eq!(named("abc", &commands), Pids::from([1]));
    }

    #[test]
    fn own_command_line_is_found() {
        let own = commands().unwrap().into_iter().find(|command| command.pid == std::process::id());
        assert!(own.is_some_and(|command| !command.words[0].is_empty()));
    }

    #[test]
    fn groups_below_count_as_well() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.procs"), "1\n2\n").unwrap();
        fs::create_dir(group.path().join("below")).unwrap();
        fs::write(group.path().join("below/cgroup.procs"), "3\n").unwrap();
        let mut pids = Pids::new();
        in_cgroup(group.path(), &mut pids).unwrap();
        assert_eq!(pids, Pids::from([1, 2, 3]));
    }
}
