//! Cases about VMs that begin as clones of a template: what they share, what they must not, and templates that are no good.

use anyhow::{Context, Result, bail, ensure};
use isopod_protocols::vmm::{BootConfig, ErrorKind, PageRange, Request, Response, Shape};
use isopod_tests::agent::{Agent, entropy};
use isopod_tests::cases;
use isopod_tests::cri::wait_for;
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::script_guest::{self, told};
use isopod_tests::template::{BUILT_FROM, Template};
use isopod_tests::vmm::{Vmm, small};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    isopod_tests::case::run(
        Settings { isopod: Isopod::Installed, ..Settings::default() },
        cases!["template":
            clones_answer_and_are_not_each_other,
            clone_of_two_processors_answers,
            clone_is_given_processors_that_come_and_go,
            template_stays_as_it_was_while_clones_write,
            timers_pending_in_the_template_fire_once_in_each_clone,
            clones_write_what_the_rehearsal_wrote,
            what_no_clone_writes_is_in_large_pages,
            damaged_or_foreign_state_is_refused,
            memory_of_another_size_is_refused,
            pod_is_not_saved,
            template_with_a_connection_is_not_saved,
        ],
    )
}

fn clones_answer_and_are_not_each_other() -> Result<()> {
    let template = Template::build(small(&[]))?;
    let mut boot_ids = BTreeSet::new();
    let mut alive = Vec::new();
    for _ in 0..4 {
        let begin = Instant::now();
        let vmm = template.clone_vm()?;
        let hello =
            Agent::connect(&vmm)?.hello(entropy()?).with_context(|| vmm.console().unwrap_or_default())?;
        println!("clone answered after {:?}", begin.elapsed());
        ensure!(boot_ids.insert(hello.boot_id.clone()), "boot id {} twice", hello.boot_id);
        alive.push(vmm);
    }
    Ok(())
}

fn pages_of(set: &[PageRange]) -> BTreeSet<u64> {
    set.iter().flat_map(|PageRange(first, count)| *first..first + count).collect()
}

fn clones_write_what_the_rehearsal_wrote() -> Result<()> {
    let template = Template::build(small(&[]))?;
    let set = template.rehearse()?;
    let expected = pages_of(&set);
    ensure!(expected.len() > 50, "an agent answers without writing? {set:?}");

    let vmm = template.clone_vm()?;
    vmm.done(&Request::Populate { pages: set }, &[])?;
    let hello = Agent::connect(&vmm)?.hello(entropy()?)?;
    ensure!(!hello.boot_id.is_empty(), "{hello:?}");
    let Response::WorkingSet { pages, .. } = vmm.call(&Request::Rehearsed {}, &[&template.memory])? else {
        bail!("no working set");
    };
    let common = pages_of(&pages).intersection(&expected).count();
    println!("a clone wrote {} pages, {common} of {} expected ones", pages_of(&pages).len(), expected.len());
    ensure!(common * 10 >= expected.len() * 8, "only {common} of {} pages", expected.len());

    let outside = vmm.call(&Request::Populate { pages: vec![PageRange(1 << 40, 1)] }, &[])?;
    ensure!(matches!(outside, Response::Error { kind: ErrorKind::Invalid, .. }), "{outside:?}");
    Agent::connect(&vmm)?.hello(entropy()?)?;
    Ok(())
}

/// What the host has of memory files in large pages, KiB.
fn large_pages() -> Result<u64> {
    let all = std::fs::read_to_string("/proc/meminfo")?;
    let line = all.lines().find_map(|line| line.strip_prefix("ShmemHugePages:"));
    let number = line.and_then(|line| line.trim().split(' ').next()).context("no ShmemHugePages")?;
    Ok(number.parse()?)
}

fn what_no_clone_writes_is_in_large_pages() -> Result<()> {
    let template = Template::build(small(&[]))?;
    let before = large_pages()?;
    template.rehearse()?;
    let after = large_pages()?;
    // The text of the kernel is four of them.
    ensure!(after >= before + 4 * 2048, "{before} KiB before, {after} KiB after");
    let vmm = template.clone_vm()?;
    Agent::connect(&vmm)?.hello(entropy()?)?;
    Ok(())
}

fn clone_of_two_processors_answers() -> Result<()> {
    let template = Template::build(BootConfig { vcpus: 2, max_vcpus: 2, ..small(&[]) })?;
    for _ in 0..2 {
        let vmm = template.clone_vm()?;
        Agent::connect(&vmm)?.hello(entropy()?)?;
    }
    Ok(())
}

fn clone_is_given_processors_that_come_and_go() -> Result<()> {
    let template = Template::build(BootConfig { max_vcpus: 4, ..small(&["loglevel=7"]) })?;
    let vmm = template.clone_vm()?;
    let agent = Agent::connect(&vmm)?;
    agent.hello(entropy()?)?;
    ensure!(vmm.stats()?.vcpus == 1, "{:?}", vmm.stats()?);

    // One alone, and two at once.
    for vcpus in [2, 4] {
        vmm.done(&Request::AddVcpus { vcpus }, &[])?;
        agent.use_processors(vcpus.into()).with_context(|| vmm.console().unwrap_or_default())?;
    }
    for line in ["Processor 1 APIC 0x1", "Processor 3 APIC 0x3"] {
        ensure!(vmm.console()?.contains(line), "no {line:?}: {}", vmm.console()?);
    }
    agent.use_processors(1)?;
    ensure!(vmm.console()?.contains("CPU 3 is now offline"), "{}", vmm.console()?);
    agent.use_processors(2)?;
    ensure!(vmm.stats()?.vcpus == 4, "{:?}", vmm.stats()?);

    refused(&vmm.call(&Request::AddVcpus { vcpus: 5 }, &[])?, ErrorKind::Invalid, "at most 4")?;
    let too_many = agent.use_processors(5).expect_err("it has places for four");
    ensure!(format!("{too_many:#}").contains("from 1 to 4"), "{too_many:#}");
    Ok(())
}

fn template_stays_as_it_was_while_clones_write() -> Result<()> {
    let template = Template::build(small(&[]))?;
    let before = sum(&template.memory)?;
    let vmm = template.clone_vm()?;
    Agent::connect(&vmm)?.hello(entropy()?)?;
    ensure!(sum(&template.memory)? == before, "a clone has changed its template");
    Ok(())
}

/// A figure that tells one content of a file from another.
fn sum(file: &File) -> Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let (mut sum, mut offset) = (0_u64, 0);
    loop {
        let count = file.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok(sum);
        }
        for word in buffer[..count].chunks_exact(8) {
            let word: [u8; 8] = word.try_into()?;
            sum = sum.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from_le_bytes(word);
        }
        offset += count as u64;
    }
}

/// PID 1 of a guest with two timers: tells when it armed them, and of each when it fired, by the seconds after which it is due.
const TIMERS: &str = "
/bin/busybox mount -t proc proc /proc
now() { read -r seconds rest </proc/uptime; echo $seconds; }
armed=$(now)
for due in 3 6; do (sleep $due; echo $due $(now)) & done
# until both sleep
sleep 0.5
echo armed $armed
wait
# for one that would fire twice
sleep 0.5
echo over $(now)
sleep 100000
";

/// Waits until the guest has told of that; answers when it was.
fn wait_to_be_told(vmm: &Vmm, what: &str) -> Result<Duration> {
    let at = || Ok(told(vmm)?.into_iter().find_map(|(name, at)| (name == what).then_some(at)));
    wait_for(what, at).with_context(|| format!("the console has {:?}", vmm.console()))
}

fn timers_pending_in_the_template_fire_once_in_each_clone() -> Result<()> {
    let root = script_guest::root(TIMERS)?;
    let (mut vmm, memory) = (Vmm::start()?, tempfile::tempfile()?);
    vmm.root = root.path().to_owned();
    vmm.boot_template(small(&[]), &memory)?;
    let armed = wait_to_be_told(&vmm, "armed")?;
    let template = Template::save(vmm, small(&[]).shape(), memory)?;
    // When the second clone begins, both are overdue by the host's clock. Its own stood still.
    for clone in ["first", "second"] {
        let vmm = template.clone_vm()?;
        wait_to_be_told(&vmm, "over")?;
        let told = told(&vmm)?;
        println!("{clone} clone of a guest that armed its timers at {armed:?}: {told:?}");
        ensure!(told.iter().map(|(name, _)| name.as_str()).eq(["3", "6", "over"]), "{told:?}");
        for ((_, at), due) in told.iter().zip([3, 6]) {
            // Not too late either: had the clock gone on meanwhile, both would fire when the second is due.
            let after = at.saturating_sub(armed);
            ensure!((due..due + 3).contains(&after.as_secs()), "{due} s: fired after {after:?}");
        }
    }
    Ok(())
}

fn refused(answer: &Response, kind: ErrorKind, words: &str) -> Result<()> {
    match answer {
        Response::Error { kind: found, message } if *found == kind && message.contains(words) => Ok(()),
        other => bail!("not refused as {kind:?} with {words:?}: {other:?}"),
    }
}

fn damaged_or_foreign_state_is_refused() -> Result<()> {
    let template = Template::build(small(&[]))?;
    let Template { memory, state, .. } = &template;
    let shape = template.shape;
    let answer = Vmm::start()?.restore("something else", shape, memory, state)?;
    refused(&answer, ErrorKind::Template, "made from")?;
    let nested = Shape { nested_virtualization: true, ..shape };
    let answer = Vmm::start()?.restore(BUILT_FROM, nested, memory, state)?;
    refused(&answer, ErrorKind::Template, "state is of")?;

    let mut byte = [0];
    state.read_exact_at(&mut byte, 5000)?;
    state.write_all_at(&[!byte[0]], 5000)?;
    let mut vmm = Vmm::start()?;
    refused(&vmm.restore(BUILT_FROM, shape, memory, state)?, ErrorKind::Template, "checksum")?;
    ensure!(vmm.ended(SOON)?.code() == Some(1), "{}", vmm.log()?);

    refused(
        &Vmm::start()?.restore(BUILT_FROM, shape, memory, &File::open("/etc/passwd")?)?,
        ErrorKind::Template,
        "not one of",
    )
}

fn memory_of_another_size_is_refused() -> Result<()> {
    let Template { memory, state, shape, .. } = Template::build(small(&[]))?;
    memory.set_len(64 << 20)?;
    refused(&Vmm::start()?.restore(BUILT_FROM, shape, &memory, &state)?, ErrorKind::Template, "bytes")
}

fn pod_is_not_saved() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(small(&[]))?;
    let save = Request::Save { built_from: BUILT_FROM.into() };
    refused(&vmm.call(&save, &[&tempfile::tempfile()?])?, ErrorKind::State, "booted as a template")?;
    Agent::connect(&vmm)?.hello(entropy()?).map(drop)
}

fn template_with_a_connection_is_not_saved() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_template(small(&[]), &tempfile::tempfile()?)?;
    vmm.wait_for_agent()?;
    let agent = Agent::connect(&vmm)?;
    agent.prepare()?;
    let save = Request::Save { built_from: BUILT_FROM.into() };
    refused(&vmm.call(&save, &[&tempfile::tempfile()?])?, ErrorKind::State, "connections")?;
    // It runs on.
    agent.prepare()
}
