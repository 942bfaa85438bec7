//! Cases about pods that are clones of a template: what no two of them may share, their clocks, and templates that are lost,
//! refused, or cannot be made. `template` has the cases about the VMM alone.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri::{self as v1, PodSandboxState};
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config, pod_config, wait_for};
use isopod_tests::node::{self, Isopod, Settings};
use isopod_tests::{daemon, held, templates};
use nix::sys::signal::{Signal, kill};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use tonic::Code;

/// Making a template has fewer steps.
const MOST_STEPS: u32 = 20;

/// Where `clocks` tells them.
const CLOCKS_PORT: u16 = 9000;

fn main() -> ExitCode {
    if node::cold() {
        println!("clones: nothing to run, as with ISOPOD_COLD no pod is a clone");
        return ExitCode::SUCCESS;
    }
    let settings = Settings {
        isopod: Isopod::Serving,
        registry: true,
        timeout: Duration::from_secs(1800),
        ..Settings::default()
    };
    isopod_tests::case::run(
        settings,
        cases!["clones":
            fifty_clones_are_nobodys_twin,
            wall_clock_of_a_clone_is_right_to_10_ms,
            monotonic_clock_of_a_clone_goes_on_and_does_not_jump,
            template_knows_what_its_clones_will_write,
            rehearsal_is_whole_in_the_end_though_eight_pods_start_at_once,
            rehearsal_that_fails_is_told_and_tried_again,
            daemon_may_die_in_a_rehearsal,
            pods_are_clones_again_after_the_daemon_was_killed,
            holder_that_dies_is_replaced_and_pods_run_on,
            template_that_is_refused_leads_to_a_cold_boot,
            vmm_killed_in_the_middle_of_its_restore_leaves_nothing,
            each_step_of_making_a_template_may_fail,
            daemon_may_die_at_each_step_of_making_a_template,
            handlers_say_who_shares_a_template,
        ],
    )
}

/// A daemon that has forgotten what failed before, and has its template.
fn cri() -> Result<Cri> {
    daemon::order_fault(None)?;
    daemon::restart()?;
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    cri.pull("probe")?;
    cri.clean()?;
    templates::wait_for_one(&cri)?;
    Ok(cri)
}

/// A clone with a container that may look into its sockets.
fn run_probe(cri: &Cri, name: &str) -> Result<(Pod, String)> {
    let pod = cri.run_pod(name)?;
    ensure!(templates::of(&pod)?.is_some(), "pod {name} is no clone");
    let mut config = container_config("probe", "probe", &["sleep", "100000"]);
    let capabilities = v1::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() };
    let context =
        v1::LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(context);
    let container = cri.run_container(&pod, config)?;
    Ok((pod, container))
}

/// Values by their names.
type Values = BTreeMap<String, String>;

/// What a program of the image `probe` prints.
fn values(cri: &Cri, container: &str, script: &str) -> Result<Values> {
    parsed(&cri.shell(container, script)?)
}

fn parsed(printed: &str) -> Result<Values> {
    let pair = |line: &str| line.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned()));
    printed.lines().map(|line| pair(line).with_context(|| format!("{line:?} in {printed}"))).collect()
}

/// What a clone drew at random; it is gone afterwards.
fn drawn_by_a_clone(cri: &Cri, name: &str) -> Result<Values> {
    const DRAW: &str =
        "random-state; for f in boot_id uuid; do echo $f $(cat /proc/sys/kernel/random/$f); done";
    let (pod, container) = run_probe(cri, name)?;
    let drawn = values(cri, &container, DRAW)?;
    cri.remove_pod(&pod.id)?;
    Ok(drawn)
}

fn fifty_clones_are_nobodys_twin() -> Result<()> {
    const STRANDS: usize = 5;
    let cri = cri()?;
    let before = held::by_pods()?;
    let strands: Vec<_> = (0..STRANDS)
        .map(|strand| {
            std::thread::spawn(move || {
                let cri = Cri::connect()?;
                (0..50 / STRANDS).map(|n| drawn_by_a_clone(&cri, &format!("twin-{strand}-{n}"))).collect()
            })
        })
        .collect();
    let mut all: Vec<Values> = Vec::new();
    for strand in strands {
        let drawn: Result<Vec<Values>> = strand.join().expect("no strand panics");
        all.extend(drawn?);
    }
    all_differ(&all)?;
    ensure!(templates::shown(&cri)?.iter().all(|one| one.clones_made == 50 && one.clones_alive == 0));
    held::nothing_more_than(&before, "at the end")
}

/// Every value is in one guest only.
fn all_differ(guests: &[Values]) -> Result<()> {
    let first = guests.first().context("nobody drew anything")?;
    ensure!(first.len() == 10, "not all that can be drawn: {first:?}");
    for name in first.keys() {
        let of_all: Vec<_> = guests.iter().filter_map(|guest| guest.get(name)).collect();
        let different: BTreeSet<_> = of_all.iter().collect();
        ensure!(different.len() == guests.len(), "{name} is in two guests: {of_all:?}");
    }
    let numbers = guests.iter().map(|guest| Ok(guest["sequence-number"].parse()?));
    let close = close_pairs(&numbers.collect::<Result<Vec<u32>>>()?);
    // Of 1225 pairs of hashes with secrets of their own, 0.09 are so close by chance. With one secret, all are: what is left
    // between them is the time from a look at the clock to a connection, and 150000 are 9.6 ms.
    ensure!(close <= 3, "{close} pairs of guests number their connections alike");
    Ok(())
}

/// Pairs that are less than 150000 apart, where numbers go round.
fn close_pairs(numbers: &[u32]) -> usize {
    let close = |a: u32, b: u32| a.wrapping_sub(b).min(b.wrapping_sub(a)) < 150_000;
    let later = |n: usize| numbers[n + 1..].iter().filter(move |other| close(numbers[n], **other)).count();
    (0..numbers.len()).map(later).sum()
}

fn clock(values: &Values, name: &str) -> Result<Duration> {
    Ok(Duration::from_nanos(values.get(name).with_context(|| format!("no {name} clock"))?.parse()?))
}

/// What the clocks of a guest tell, and the node's wall clock before and after they were asked.
fn ask_clocks(address: &str) -> Result<(Duration, Values, Duration)> {
    let now = || Ok::<_, anyhow::Error>(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?);
    let before = now()?;
    let mut told = String::new();
    TcpStream::connect((address, CLOCKS_PORT))?.read_to_string(&mut told)?;
    let after = now()?;
    Ok((before, parsed(&told)?, after))
}

fn wall_clock_of_a_clone_is_right_to_10_ms() -> Result<()> {
    const NEAR: Duration = Duration::from_millis(10);
    let cri = cri()?;
    let (pod, _) = run_probe(&cri, "wall")?;
    cri.run_container(&pod, container_config("clocks", "probe", &["clocks", &CLOCKS_PORT.to_string()]))?;
    let address = cri.pod_status(&pod.id)?.network.unwrap_or_default().ip;
    wait_for("an answer", || Ok(ask_clocks(&address).ok()))?;
    // An answer shows an error only beyond the time that it took; of many, one is quick.
    let mut quickest = Duration::MAX;
    for _ in 0..50 {
        let (before, told, after) = ask_clocks(&address)?;
        let told = clock(&told, "realtime")?;
        ensure!(before - NEAR <= told && told <= after + NEAR, "{told:?} between {before:?} and {after:?}");
        quickest = quickest.min(after - before);
    }
    println!("the quickest answer took {quickest:?}");
    cri.clean()
}

fn monotonic_clock_of_a_clone_goes_on_and_does_not_jump() -> Result<()> {
    /// Both clocks have the time of the same processor; this is for their rates.
    const NEAR: Duration = Duration::from_millis(1);
    let cri = cri()?;
    let (_, container) = run_probe(&cri, "first")?;
    let read = |of: &str| {
        let begin = Instant::now();
        let told = clock(&values(&cri, of, "clocks")?, "monotonic")?;
        Ok::<_, anyhow::Error>((begin, told, Instant::now()))
    };
    let (begin, first, end) = read(&container)?;
    std::thread::sleep(Duration::from_secs(1));
    let (begin_again, second, end_again) = read(&container)?;
    let (least, gone, most) = (begin_again - end, second - first, end_again - begin);
    ensure!(least <= gone + NEAR && gone <= most + NEAR, "{gone:?} of {least:?} to {most:?}");
    // Where it begins, the template stopped: time in which there was no clone does not count.
    std::thread::sleep(most);
    let begin = Instant::now();
    let (_, other) = run_probe(&cri, "second")?;
    let (_, later, end) = read(&other)?;
    let lived = end - begin;
    ensure!(later <= first + lived, "{later:?} after {lived:?} at most, {first:?} in one that began earlier");
    cri.clean()
}

/// The record of a template.
fn record(name: &str) -> Result<serde_json::Value> {
    let path = format!("{}/{name}.json", templates::DIRECTORY);
    Ok(serde_json::from_slice(&fs::read(&path).context(path)?)?)
}

/// Pages of the working set that is recorded for the one template there is, when it is rehearsed.
fn recorded_pages(cri: &Cri) -> Result<u64> {
    let record = record(&templates::wait_for_one(cri)?)?;
    let set: Vec<(u64, u64)> = serde_json::from_value(record["working_set"].clone())?;
    let pages: u64 = set.iter().map(|(_, count)| count).sum();
    // An agent that answers writes a hundred, a first container several times as many.
    ensure!((400..2000).contains(&pages), "{pages} pages");
    Ok(pages)
}

fn template_knows_what_its_clones_will_write() -> Result<()> {
    let cri = cri()?;
    let found = recorded_pages(&cri)?;
    daemon::restart()?;
    let later = recorded_pages(&cri)?;
    ensure!(later == found, "the next daemon knows of {later} pages, not of {found}");
    let (_, container) = cri.run_sleeper("populated")?;
    ensure!(cri.shell(&container, "echo fine")? == "fine", "the pod does not run");
    cri.clean()
}

/// The node's boot in small: no template, and kubelet asks for many pods before there is one.
fn rehearsal_is_whole_in_the_end_though_eight_pods_start_at_once() -> Result<()> {
    const PODS: usize = 8;
    cri()?;
    templates::lose_all()?;
    daemon::start()?;
    let cri = Cri::connect()?;
    let start = |number: usize| {
        move || -> Result<(Pod, String)> { Ok(Cri::connect()?.run_sleeper(&format!("eager-{number}"))?) }
    };
    let pods: Vec<_> = (0..PODS).map(|number| std::thread::spawn(start(number))).collect();
    for pod in pods {
        let (_, container) = pod.join().expect("no thread panics")?;
        ensure!(cri.shell(&container, "echo fine")? == "fine", "a pod does not run");
    }
    let found = recorded_pages(&cri)?;
    println!("a rehearsal beside {PODS} pods found {found} pages");
    daemon::restart()?;
    let later = recorded_pages(&cri)?;
    ensure!(later == found, "the next daemon knows of {later} pages, not of {found}");
    cri.clean()
}

/// The template as Status shows it once its rehearsal has failed.
fn wait_for_failed_rehearsal(cri: &Cri) -> Result<templates::Shown> {
    wait_for("a rehearsal that fails", || {
        let all = templates::shown(cri)?;
        Ok(all.into_iter().find(|one| one.rehearsal.as_deref() == Some("failed")))
    })
}

fn rehearsal_that_fails_is_told_and_tried_again() -> Result<()> {
    cri()?;
    templates::lose_all()?;
    daemon::order_fault(Some("Rehearsal 1"))?;
    daemon::start()?;
    let cri = Cri::connect()?;
    let shown = wait_for_failed_rehearsal(&cri)?;
    let reason = shown.rehearsal_reason.unwrap_or_default();
    ensure!(shown.state == "ready" && reason.contains("on purpose"), "{}: {reason}", shown.state);
    let name = shown.name.context("a template that is ready has a name")?;
    ensure!(record(&name)?.get("working_set").is_none(), "an empty working set is recorded");
    ensure!(templates::of(&cri.run_pod("meanwhile")?)?.as_ref() == Some(&name), "it is not cloned meanwhile");
    // The next daemon knows no better, and rehearses by itself.
    daemon::restart()?;
    wait_for_failed_rehearsal(&cri)?;
    daemon::order_fault(None)?;
    recorded_pages(&cri)?;
    cri.clean()?;
    templates::only_held(&name, "after its rehearsal failed")
}

fn daemon_may_die_in_a_rehearsal() -> Result<()> {
    let cri = cri()?;
    for step in 1..MOST_STEPS {
        templates::lose_all()?;
        daemon::order_fault(Some(&format!("Rehearsal {step} abort")))?;
        let mut daemon = daemon::begin()?;
        let died = wait_for("a rehearsal, or the daemon's end", || {
            let died = daemon.try_wait()?.is_some();
            let whole = templates::shown(&cri).is_ok_and(|all| all.iter().any(templates::Shown::is_whole));
            Ok((died || whole).then_some(died))
        })?;
        daemon::order_fault(None)?;
        daemon.kill()?;
        daemon.wait()?;
        daemon::start()?;
        let name = templates::wait_for_one(&cri)?;
        // The VM in which the dead one rehearsed is gone as well.
        templates::only_held(&name, &format!("after the daemon died at step {step} of a rehearsal"))?;
        if !died {
            ensure!(step > 1, "a rehearsal has no steps");
            return Ok(());
        }
    }
    anyhow::bail!("a rehearsal has {MOST_STEPS} steps or more")
}

fn pods_are_clones_again_after_the_daemon_was_killed() -> Result<()> {
    let cri = cri()?;
    let (name, holder) = (templates::wait_for_one(&cri)?, templates::holder()?);
    let (old, container) = cri.run_sleeper("old")?;
    daemon::restart()?;
    ensure!(templates::holder()? == holder, "there is another holder");
    let new = cri.run_pod("new")?;
    for pod in [&old, &new] {
        ensure!(templates::of(pod)?.as_deref() == Some(&*name), "{:?} is no clone of {name}", pod.name());
    }
    ensure!(templates::shown(&cri)?.iter().all(|one| one.clones_alive == 2), "they are not counted");
    ensure!(cri.shell(&container, "echo fine")? == "fine", "the old pod was hit");
    cri.clean()
}

fn holder_that_dies_is_replaced_and_pods_run_on() -> Result<()> {
    let cri = cri()?;
    let old = templates::wait_for_one(&cri)?;
    let (_, container) = cri.run_sleeper("old")?;
    kill(templates::holder()?, Signal::SIGKILL)?;
    let (_, meanwhile) = cri.run_sleeper("meanwhile")?;
    for container in [container, meanwhile] {
        ensure!(cri.shell(&container, "echo fine")? == "fine", "a pod does not run");
    }
    let new = wait_for("another template", || {
        Ok(templates::shown(&cri)?.into_iter().find_map(|one| one.name).filter(|name| *name != old))
    })?;
    ensure!(templates::of(&cri.run_pod("new")?)?.as_ref() == Some(&new), "no clone of the new template");
    cri.clean()?;
    templates::wait_for_one(&cri)?;
    templates::only_held(&new, "after its holder died")
}

/// Has each of two records name the other one's holder, so that a daemon takes memory for what it is not.
fn swap_holders() -> Result<()> {
    let records = fs::read_dir(templates::DIRECTORY)?.flatten().map(|entry| entry.path());
    let paths: Vec<_> = records.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    let [first, second] = paths.as_slice() else { anyhow::bail!("not two records: {paths:?}") };
    let read = |path| Ok::<serde_json::Value, anyhow::Error>(serde_json::from_slice(&fs::read(path)?)?);
    let (mut one, mut other) = (read(first)?, read(second)?);
    for field in ["pid", "started_at_ticks"] {
        std::mem::swap(&mut one[field], &mut other[field]);
    }
    fs::write(first, serde_json::to_vec(&one)?)?;
    Ok(fs::write(second, serde_json::to_vec(&other)?)?)
}

fn template_that_is_refused_leads_to_a_cold_boot() -> Result<()> {
    daemon::configured("[handlers.other]\nkernel_args = [\"case.other=1\"]\n", |cri| {
        let old: Vec<_> = templates::wait_ready(cri, 2)?.into_iter().filter_map(|one| one.name).collect();
        daemon::kill()?;
        swap_holders()?;
        daemon::start()?;
        cri.pull("busybox")?;
        let (pod, container) = cri.run_sleeper("refused")?;
        ensure!(templates::of(&pod)?.is_none(), "it is a clone of what is no template of its kind");
        ensure!(cri.shell(&container, "echo fine")? == "fine", "it does not run");
        let log = fs::read_to_string(daemon::LOG)?;
        ensure!(log.contains("clone failed") && log.contains("was made from"), "nobody is told why");
        wait_for("new templates", || {
            let ready: Vec<_> = templates::shown(cri)?.into_iter().filter_map(|one| one.name).collect();
            Ok((ready.len() == 2 && ready.iter().all(|name| !old.contains(name))).then_some(()))
        })?;
        ensure!(templates::of(&cri.run_pod("next")?)?.is_some(), "the next pod is no clone");
        cri.clean()
    })
}

/// Kills the next VMM of a pod as soon as it is there.
fn kill_next_vmm() -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        // Without a pause: a clone is made within some hundredths of a second.
        if let Some((vmm, _)) = held::vmms()?.first() {
            return Ok(kill(*vmm, Signal::SIGKILL)?);
        }
    }
    anyhow::bail!("no VMM was started")
}

fn vmm_killed_in_the_middle_of_its_restore_leaves_nothing() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    for round in 1..=3 {
        let killer = std::thread::spawn(kill_next_vmm);
        let begin = Instant::now();
        let outcome = cri.run_pod("stillborn");
        killer.join().expect("the killer does not panic")?;
        ensure!(begin.elapsed() < Duration::from_secs(60), "it took {:?}", begin.elapsed());
        println!("round {round}: {:?} after {:?}", outcome.as_ref().map(|pod| &pod.id), begin.elapsed());
        match outcome {
            Ok(pod) => {
                ensure!(templates::of(&pod)?.is_none(), "a clone outlives its VMM");
                ensure!(cri.pod_status(&pod.id)?.state() == PodSandboxState::SandboxReady, "it is not ready");
            }
            Err(refused) => {
                let told = refused.code() == Code::Internal && refused.message().contains("ended");
                ensure!(told, "{refused:?}");
            }
        }
        cri.clean()?;
        held::nothing_more_than(&before, &format!("of a clone that was killed, round {round}"))?;
        // Perhaps the template went, and is made when it is asked for. One that has a clone is forgiven what came before.
        cri.run_pod("asks")?;
        templates::wait_for_one(&cri)?;
        ensure!(templates::of(&cri.run_pod("clone")?)?.is_some(), "no clone after round {round}");
        cri.clean()?;
    }
    Ok(())
}

fn each_step_of_making_a_template_may_fail() -> Result<()> {
    cri()?;
    for step in 1..MOST_STEPS {
        templates::lose_all()?;
        daemon::order_fault(Some(&format!("BuildTemplate {step}")))?;
        // Each time another daemon: one that failed to make a template does not try again before a minute.
        daemon::start()?;
        let cri = Cri::connect()?;
        let ended = || Ok(templates::shown(&cri)?.into_iter().find(|one| one.state != "building"));
        let made = wait_for("an end of making a template", ended)?;
        let Some(reason) = made.reason else {
            ensure!(step > 1, "making a template has no steps");
            daemon::order_fault(None)?;
            daemon::restart()?;
            return templates::only_held(&templates::wait_for_one(&cri)?, "after no step failed");
        };
        ensure!(reason.contains("on purpose"), "step {step}: {reason}");
        if step == 1 {
            ensure!(templates::of(&cri.run_pod("cold")?)?.is_none(), "a clone of nothing");
            cri.clean()?;
        }
        templates::nothing_held(&format!("that failed at step {step}"))?;
    }
    anyhow::bail!("making a template has {MOST_STEPS} steps or more")
}

fn daemon_may_die_at_each_step_of_making_a_template() -> Result<()> {
    let cri = cri()?;
    for step in 1..MOST_STEPS {
        templates::lose_all()?;
        daemon::order_fault(Some(&format!("BuildTemplate {step} abort")))?;
        let mut daemon = daemon::begin()?;
        let died = wait_for("a template, or the daemon's end", || {
            let died = daemon.try_wait()?.is_some();
            let made = templates::shown(&cri).is_ok_and(|all| all.iter().any(|one| one.state == "ready"));
            Ok((died || made).then_some(died))
        })?;
        daemon::order_fault(None)?;
        daemon.kill()?;
        daemon.wait()?;
        daemon::start()?;
        let name = templates::wait_for_one(&cri)?;
        templates::only_held(&name, &format!("after the daemon died at step {step}"))?;
        if !died {
            ensure!(step > 1, "making a template has no steps");
            return Ok(());
        }
    }
    anyhow::bail!("making a template has {MOST_STEPS} steps or more")
}

fn handlers_say_who_shares_a_template() -> Result<()> {
    let text = "[handlers.alone]\ntemplate = \"off\"\n[handlers.apart]\ntemplate = \"namespace\"\n";
    daemon::configured(text, |cri| {
        templates::wait_for_one(cri)?;
        let alone = cri.run_pod_by("alone", pod_config("alone"))?;
        ensure!(templates::of(&alone)?.is_none(), "it shares a template");
        for (others, namespace) in [(1, "a"), (2, "b")] {
            let run = || {
                let mut config = pod_config("apart");
                config.metadata.get_or_insert_default().namespace = namespace.into();
                templates::of(&cri.run_pod_by("apart", config)?)
            };
            ensure!(run()?.is_none(), "the first pod of {namespace} is a clone");
            let ready = templates::wait_ready(cri, others + 1)?;
            let own = ready.into_iter().find(|one| one.scope == format!("ns:{namespace}"));
            let own = own.with_context(|| format!("{namespace} has no template"))?.name;
            ensure!(
                own.is_some() && run()? == own,
                "the second pod of {namespace} is no clone of its template"
            );
        }
        cri.clean()
    })
}
