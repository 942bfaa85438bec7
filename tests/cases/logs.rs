//! Cases about what containers write: logs that are flooded, rotated, on a disk that hangs, or that somebody
//! has put a link in place of; and about who may read what the daemon keeps.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{self as v1, KeyValue};
use isopod_tests::cri::{Cri, container_config, pod_config, wait_for};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{cases, daemon, held};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Counts on both streams without end, in long lines, and says in a file how far it is.
const FLOOD: &str = "mkdir -p /tmp; p=$(printf %0200d 0); i=0; \
    while :; do echo $i $p; echo $i $p >&2; echo $i >/tmp/i; i=$((i+1)); done";

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["logs":
            log_on_a_disk_that_hangs_holds_up_its_container_alone,
            rotated_flood_is_in_the_logs_whole_and_in_order,
            log_that_is_a_link_or_a_fifo_is_refused,
            log_rotated_into_a_link_is_not_followed,
            records_are_closed_to_others_also_those_of_an_earlier_daemon,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    Ok(cri)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

/// A file system that can be frozen: whoever writes to it then waits.
struct Disk;

impl Disk {
    const PATH: &str = "/tmp/hanging";

    fn mount() -> Result<Self> {
        let image = "/tmp/hanging.ext4";
        fs::write(image, "")?;
        fs::OpenOptions::new().write(true).open(image)?.set_len(256 << 20)?;
        fs::create_dir_all(Self::PATH)?;
        run("mke2fs", &["-q", "-F", "-t", "ext4", image])?;
        // The node loads modules by name only.
        for module in ["loop", "ext4"] {
            let _ = run("modprobe", &[module]);
        }
        run("mount", &["-o", "loop", image, Self::PATH])?;
        Ok(Self)
    }

    fn freeze(&self) -> Result<()> {
        run("fsfreeze", &["--freeze", Self::PATH])
    }

    fn thaw(&self) -> Result<()> {
        run("fsfreeze", &["--unfreeze", Self::PATH])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // One that is not frozen refuses.
        let _ = self.thaw();
        let _ = run("umount", &["-l", Self::PATH]);
    }
}

/// The daemon answers a call soon.
fn answers(cri: &Cri) -> Result<()> {
    let mut service = cri.service();
    let call = cri.begin(async move { service.list_containers(v1::ListContainersRequest::default()).await });
    let begin = Instant::now();
    while !call.is_finished() {
        ensure!(begin.elapsed() < Duration::from_secs(10), "no answer within 10 s");
        std::thread::sleep(Duration::from_millis(20));
    }
    cri.block_on(call)??;
    Ok(())
}

/// Memory that the daemon has resident, in KiB.
fn resident() -> Result<u64> {
    let pid = *daemon::pids()?.first().context("no daemon")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn log_on_a_disk_that_hangs_holds_up_its_container_alone() -> Result<()> {
    let cri = cri()?;
    let disk = Disk::mount()?;
    let mut config = pod_config("hangs");
    config.log_directory = format!("{}/logs", Disk::PATH);
    let pod = cri.run_pod_with(config)?;
    let names = ["a", "b", "c"];
    let flood =
        |name: &&str| cri.run_container(&pod, container_config(name, "busybox", &["sh", "-c", FLOOD]));
    let floods = names.iter().map(flood).collect::<Result<Vec<_>, _>>()?;
    floods.iter().try_for_each(|flood| cri.wait_logged(flood, "F 100 ").map(drop))?;
    let count = |flood: &String| Ok::<u64, anyhow::Error>(cri.shell(flood, "cat /tmp/i")?.parse()?);
    disk.freeze()?;
    let held_up = |flood: &String| {
        // It may be between emptying its file and writing it.
        let Ok(before) = count(flood) else { return Ok(None) };
        std::thread::sleep(Duration::from_secs(1));
        Ok::<_, anyhow::Error>(Some(()).filter(|()| count(flood).is_ok_and(|now| now == before)))
    };
    floods.iter().try_for_each(|flood| wait_for("the flood to be held up", || held_up(flood)))?;
    let before = resident()?;
    for _ in 0..10 {
        answers(&cri)?;
    }
    // Calls that write beside it go on too.
    let (_, other) = cri.run_sleeper("beside")?;
    ensure!(cri.shell(&other, "echo goes on")? == "goes on", "another pod is held up");
    let more = resident()?.saturating_sub(before);
    ensure!(more < 16 << 10, "the daemon took {more} KiB more");
    disk.thaw()?;
    let number = |flood: &String| wait_for("a number", || Ok(count(flood).ok()));
    let last = floods.iter().map(number).collect::<Result<Vec<_>>>()?;
    for (flood, last) in floods.iter().zip(last) {
        wait_for(
            "the flood to go on",
            || Ok(Some(()).filter(|()| count(flood).is_ok_and(|now| now > last))),
        )?;
        cri.stop(flood, 0)?;
        // The last record may be in the middle of its writing.
        let log = cri.log(flood)?;
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        in_order(&[whole.to_owned()], "stdout")?;
    }
    cri.clean()
}

/// The stream's lines begin with numbers from 0 on, without a gap; answers how many there are.
fn in_order(logs: &[String], stream: &str) -> Result<usize> {
    let records = logs.iter().flat_map(|log| log.lines());
    let of_stream = records.filter_map(|record| {
        let mut words = record.splitn(4, ' ').skip(1);
        (words.next() == Some(stream)).then(|| words.nth(1).unwrap_or_default())
    });
    let mut count = 0;
    for (expected, line) in of_stream.enumerate() {
        let number = line.split(' ').next().unwrap_or_default();
        ensure!(number == expected.to_string(), "{stream}: line {expected} is {line:?}");
        count += 1;
    }
    Ok(count)
}

fn rotated_flood_is_in_the_logs_whole_and_in_order() -> Result<()> {
    const LINES: usize = 30_000;
    const ROTATIONS: usize = 5;
    let cri = cri()?;
    let pod = cri.run_pod("rotated")?;
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo $i; echo $i >&2; i=$((i+1)); done");
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", &script]))?;
    let path = cri.status(&container)?.log_path;
    cri.wait_logged(&container, "F 10\n")?;
    let (mut logs, mut closed) = (Vec::new(), Vec::new());
    for number in 0..ROTATIONS {
        let rotated = format!("{path}.{number}");
        fs::rename(&path, &rotated)?;
        let request = v1::ReopenContainerLogRequest { container_id: container.clone() };
        let reopened = cri.wait(cri.service().reopen_container_log(request));
        ensure!(reopened.is_ok() || number > 0, "{reopened:?}");
        logs.push(rotated.clone());
        // One that has ended meanwhile writes its last lines to the file that was renamed.
        if reopened.is_err() {
            break;
        }
        closed.push((fs::metadata(&rotated)?.len(), rotated));
    }
    let ended = cri.wait_exited(&container)?;
    ensure!(ended.exit_code == 0, "{ended:?}");
    logs.push(path);
    let read = || -> Result<Vec<String>> {
        Ok(logs.iter().map(|log| fs::read_to_string(log).unwrap_or_default()).collect())
    };
    for stream in ["stdout", "stderr"] {
        wait_for(stream, || {
            Ok(Some(()).filter(|()| read().is_ok_and(|logs| in_order(&logs, stream).ok() == Some(LINES))))
        })?;
        in_order(&read()?, stream)?;
    }
    for (length, log) in closed {
        ensure!(fs::metadata(&log)?.len() == length, "{log} was written after its log was opened anew");
    }
    cri.clean()
}

fn log_that_is_a_link_or_a_fifo_is_refused() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("links")?;
    let logs = PathBuf::from(&pod.config.log_directory);
    let before = held::by_pods()?;
    symlink("/etc/made-by-a-log", logs.join("link.log"))?;
    symlink("/etc", logs.join("directory"))?;
    run("mkfifo", &[&logs.join("fifo.log").to_string_lossy()])?;
    for (log, words) in [
        ("link.log", "link.log is not a regular file"),
        ("fifo.log", "fifo.log is not a regular file"),
        ("directory/made-by-a-log", "directory is not a directory, and links are not followed"),
    ] {
        let mut config = container_config("c", "busybox", &["echo", "written"]);
        config.log_path = log.into();
        let refused = cri.create(&pod, config).expect_err("a log is written to regular files only");
        ensure!(refused.message().contains(words), "{log}: {refused:?}");
        held::nothing_more_than(&before, "behind a refusal")?;
    }
    ensure!(!Path::new("/etc/made-by-a-log").exists(), "a log was made where a link led");
    cri.clean()
}

fn log_rotated_into_a_link_is_not_followed() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("swapped")?;
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sh", "-c", FLOOD]))?;
    cri.wait_logged(&container, "F 10 ")?;
    let path = cri.status(&container)?.log_path;
    let (rotated, target) = (format!("{path}.old"), "/tmp/target-of-a-log");
    fs::write(target, "untouched")?;
    fs::rename(&path, &rotated)?;
    symlink(target, &path)?;
    let request = || v1::ReopenContainerLogRequest { container_id: container.clone() };
    let refused = cri.wait(cri.service().reopen_container_log(request())).expect_err("it is a link");
    ensure!(refused.message().contains("not a regular file"), "{refused:?}");
    let length = fs::metadata(&rotated)?.len();
    wait_for("the old file to be written", || {
        Ok(Some(()).filter(|()| fs::metadata(&rotated).is_ok_and(|now| now.len() > length)))
    })?;
    fs::remove_file(&path)?;
    cri.wait(cri.service().reopen_container_log(request()))?;
    cri.wait_logged(&container, " stdout F ")?;
    ensure!(fs::read_to_string(target)? == "untouched", "the link's target was written");
    cri.clean()
}

/// Directories and regular files below `path` that others than their owner may use.
fn open_to_others(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if (metadata.is_dir() || metadata.is_file()) && metadata.permissions().mode() & 0o077 != 0 {
        found.push(path.to_owned());
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_others(&entry?.path(), found)?;
        }
    }
    Ok(())
}

fn records_are_closed_to_others_also_those_of_an_earlier_daemon() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("secret")?;
    let mut config = container_config("c", "busybox", &["sleep", "1000"]);
    config.envs = vec![KeyValue { key: "PASSWORD".into(), value: "kept-by-nobody".into() }];
    config.annotations.insert("note".into(), "told-to-nobody".into());
    let container = cri.run_container(&pod, config)?;
    let record = format!("/run/isopod/containers/{container}.json");
    let kept = fs::read_to_string(&record)?;
    ensure!(kept.contains("told-to-nobody"), "the case looks at the wrong file");
    ensure!(!kept.contains("kept-by-nobody"), "a record has no need of environments");
    let places = ["/run/isopod", "/run/isopod/containers", "/run/isopod/sandboxes", "/run/isopod/network"];
    let closed = |when: &str| {
        let mut open = Vec::new();
        places[1..].iter().try_for_each(|place| open_to_others(Path::new(place), &mut open))?;
        for place in ["/run/isopod", "/var/lib/isopod"] {
            let mode = fs::metadata(place)?.permissions().mode() & 0o7777;
            ensure!(mode == 0o700, "{when}: {place} has mode {mode:o}");
        }
        let socket = fs::metadata("/run/isopod/isopod.sock")?.permissions().mode() & 0o7777;
        ensure!(open.is_empty() && socket == 0o600, "{when}: {open:#?}, the socket has mode {socket:o}");
        Ok(())
    };
    closed("as they were made")?;
    // As a daemon of an earlier version left them.
    for place in places.iter().chain(&["/var/lib/isopod"]) {
        fs::set_permissions(place, Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(&record, Permissions::from_mode(0o644))?;
    daemon::restart()?;
    closed("after a start")?;
    Cri::connect()?.clean()
}
