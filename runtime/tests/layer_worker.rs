//! The processes of a layer, converter and decompressor, seen from outside: the real daemon program in its
//! jail. What the converter makes is looked at with `fsck.erofs`, which knows nothing of this project.
//!
//! Needs root, and says so where it is not; fsck.erofs is that of `guest-image/erofs-utils`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use isopod_runtime::image::erofs::Erofs;
use isopod_runtime::image::worker::{Decompressor, JAIL_FAILED, Jail, Worker};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const UID: u32 = 1_999_999_998;

struct Fixture {
    directory: tempfile::TempDir,
}

/// A converter at work.
struct Running {
    child: Child,
    socket: UnixStream,
}

impl Fixture {
    /// `None`, with the reason printed, where this machine cannot run the test.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a jail is made by root");
            return None;
        }
        Some(Self { directory: tempfile::tempdir().unwrap() })
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("output")
    }

    fn jail(&self, largest_file: u64) -> Jail {
        let mount_point = self.directory.path().join("jail");
        fs::create_dir_all(&mount_point).unwrap();
        Jail { uid: UID, cgroup: None, mount_point, largest_file, cpu_seconds: 60 }
    }

    fn start(&self, output: u64, names: usize) -> Running {
        self.start_worker(&Worker { jail: self.jail(output), output, names })
    }

    fn start_decompressor(&self) -> Child {
        let decompressor = Decompressor { jail: self.jail(0) };
        let mut command = decompressor.command(Path::new(env!("CARGO_BIN_EXE_isopod"))).unwrap().into_std();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn start_worker(&self, worker: &Worker) -> Running {
        let output = File::create(self.output()).unwrap();
        chown(self.output(), Some(UID), Some(UID)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let command = worker.command(Path::new(env!("CARGO_BIN_EXE_isopod")), &theirs).unwrap();
        let mut command = command.into_std();
        command.stdin(Stdio::piped()).stdout(Stdio::from(output)).stderr(Stdio::piped());
        Running { child: command.spawn().unwrap(), socket: ours }
    }

    /// What `fsck.erofs` says of the output.
    fn check(&self) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-image/erofs-utils/build.sh");
        let ran = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(ran.status.success(), "erofs-utils cannot be built");
        let fsck = Path::new(String::from_utf8(ran.stdout).unwrap().trim()).join("fsck.erofs");
        Command::new(fsck).arg("--extract").arg(self.output()).output().unwrap()
    }
}

impl Running {
    /// Sends the archive, has no layers below, and waits for the end.
    fn finish(mut self, archive: impl FnOnce(&mut dyn Write)) -> Output {
        let mut socket = self.socket;
        // it may ask before it has read the whole archive
        let answer = std::thread::spawn(move || {
            let mut wanted = [0];
            if socket.read(&mut wanted).unwrap() == 1 {
                assert_eq!(wanted, *b"L");
                socket.write_all(b".").unwrap();
            }
        });
        let mut pipe = std::io::BufWriter::with_capacity(1 << 20, self.child.stdin.take().unwrap());
        archive(&mut pipe);
        // a converter that has failed reads no more
        let _ = pipe.flush();
        drop(pipe);
        let output = self.child.wait_with_output().unwrap();
        answer.join().unwrap();
        output
    }
}

/// The status of a process, once it is jailed.
fn status(child: &Child) -> String {
    let begun = Instant::now();
    loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        if status.contains("Seccomp:\t2") {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "never jailed: {status}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Looks at what a process in its jail is, and has.
fn require_jailed(child: &Child, descriptors: usize) {
    let status = status(child);
    let is = |line: String| assert!(status.contains(&line), "no {line:?} in {status}");
    is("Name:\tisopod-layer\n".to_owned());
    is(format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n"));
    is(format!("Gid:\t{UID}\t{UID}\t{UID}\t{UID}\n"));
    is("Groups:\t \n".to_owned());
    is("NoNewPrivs:\t1\n".to_owned());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        is(format!("{set}:\t0000000000000000\n"));
    }
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    assert_eq!(fs::read_dir(process.join("root")).unwrap().count(), 0, "its root holds something");
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |process: &Path| fs::metadata(process.join("ns").join(namespace)).unwrap().ino();
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{namespace}");
    }
    assert_eq!(fs::read_dir(process.join("fd")).unwrap().count(), descriptors);
}

fn header(name: &str, kind: u8, length: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{length:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Writes an archive with one file of `length` bytes. A converter that fails takes no more of it.
fn one_file(length: usize) -> impl FnOnce(&mut dyn Write) {
    move |pipe| {
        let mut archive = header("file", b'0', length);
        archive.resize(512 + length.next_multiple_of(512), 7);
        archive.resize(archive.len() + 1024, 0);
        let _ = pipe.write_all(&archive);
    }
}

#[test]
fn converter_runs_as_its_own_user_in_an_empty_root() {
    let Some(fixture) = Fixture::new() else { return };
    let running = fixture.start(1 << 30, 1 << 20);
    // archive, output, complaints, socket
    require_jailed(&running.child, 4);
    let output = running.finish(one_file(100));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn decompressor_runs_as_its_own_user_in_an_empty_root() {
    let Some(fixture) = Fixture::new() else { return };
    let child = fixture.start_decompressor();
    // zstd, archive, complaints
    require_jailed(&child, 3);
    let content: Vec<u8> = (0..3_000_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
    let frames = [b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(&content, 27), zstd(b"end", 10)].concat();
    let output = decompress(child, frames);
    assert!(output.status.success() && output.stderr.is_empty(), "{:?}", output.status);
    assert!(output.stdout == [content, b"end".to_vec()].concat());
}

#[test]
fn decompressor_tells_what_is_wrong_with_its_input() {
    let Some(fixture) = Fixture::new() else { return };
    let whole = zstd(b"content", 10);
    for (bytes, said) in [
        (
            whole[..whole.len() - 1].to_vec(),
            "cannot decompress part 1 of the zstd data of the layer: it breaks off;",
        ),
        ([&whole[..], b"rest"].concat(), "cannot decompress part 2 of the zstd data"),
        (b"no zstd at all".to_vec(), "cannot decompress part 1 of the zstd data"),
    ] {
        let output = decompress(fixture.start_decompressor(), bytes);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with(said), "{output:?}");
    }
}

/// A frame whose decoder keeps 2^`window` bytes.
fn zstd(content: &[u8], window: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.set_parameter(zstd::stream::raw::CParameter::WindowLog(window)).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Gives a decompressor its input and waits for its end.
fn decompress(mut child: Child, input: Vec<u8>) -> Output {
    let mut pipe = child.stdin.take().unwrap();
    let given = std::thread::spawn(move || {
        // one that has failed reads no more
        let _ = pipe.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    given.join().unwrap();
    output
}

#[test]
fn result_is_a_file_system_that_others_read() {
    let Some(fixture) = Fixture::new() else { return };
    let output = fixture.start(1 << 30, 1 << 20).finish(|pipe| {
        for length in [0, 1, 4000, 4096, 4097, 70_000, 200_000] {
            let mut file = header(&format!("d{length}/f"), b'0', length);
            file.resize(512 + length.next_multiple_of(512), 7);
            pipe.write_all(&file).unwrap();
        }
        for number in 0..2000 {
            pipe.write_all(&header(&format!("many/name-{number:0>60}"), b'0', 0)).unwrap();
        }
        pipe.write_all(&[0; 1024]).unwrap();
    });
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let checked = fixture.check();
    assert!(checked.status.success(), "{checked:?}");
    let image = Erofs::open(File::open(fixture.output()).unwrap()).unwrap();
    let many = image.lookup(&image.root().unwrap(), b"many").unwrap().unwrap();
    assert_eq!(image.entries(&many).unwrap().len(), 2000);
}

#[test]
fn file_beyond_the_limit_is_an_error_that_is_told() {
    let Some(fixture) = Fixture::new() else { return };
    let output = fixture.start(1 << 20, 1 << 20).finish(one_file(4 << 20));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("more than 1048576 bytes (image.max_layer_mib)"), "{output:?}");
    assert!(fs::metadata(fixture.output()).unwrap().len() <= 1 << 20);
}

#[test]
fn memory_is_bounded_by_names_for_a_layer_of_a_million_files() {
    let Some(fixture) = Fixture::new() else { return };
    let mut running = fixture.start(8 << 30, 1 << 30);
    let mut pipe = std::io::BufWriter::with_capacity(1 << 20, running.child.stdin.take().unwrap());
    for number in 0..1001 {
        pipe.write_all(&header(&format!("d{number}/"), b'5', 0)).unwrap();
    }
    for number in 0..1_000_000 {
        // one directory of a hundred thousand, and a thousand of nine hundred
        let directory = if number < 100_000 { 0 } else { 1 + number % 1000 };
        let mut file = header(&format!("d{directory}/file-{number:0>20}"), b'0', 5);
        file.resize(1024, b'x');
        pipe.write_all(&file).unwrap();
    }
    pipe.write_all(&[0; 1024]).unwrap();
    pipe.flush().unwrap();
    drop(pipe);
    let mut wanted = [0];
    running.socket.read_exact(&mut wanted).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    running.socket.write_all(b".").unwrap();
    let output = running.child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    println!("peak {peak} KiB");
    assert!(peak < 256 << 10, "{peak} KiB for a million names");
    let size = fs::metadata(fixture.output()).unwrap().len();
    assert!(size < 300 << 20, "{size} bytes for five million bytes of files");
}

#[test]
fn names_that_would_fill_memory_are_refused() {
    let Some(fixture) = Fixture::new() else { return };
    let output = fixture.start(1 << 30, 64 << 10).finish(|pipe| {
        for number in 0..2000 {
            let _ = pipe.write_all(&header(&format!("file-{number}"), b'0', 0));
        }
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("its names take more than 65536 bytes of memory: split the layer"), "{output:?}");
}

#[test]
fn jail_that_cannot_be_closed_is_told() {
    let Some(fixture) = Fixture::new() else { return };
    let mount_point = PathBuf::from("/nowhere");
    let jail = Jail { uid: UID, cgroup: None, mount_point, largest_file: 1 << 20, cpu_seconds: 60 };
    let running = fixture.start_worker(&Worker { jail, output: 1 << 20, names: 1 << 20 });
    let output = running.finish(|_| ());
    assert_eq!(output.status.code(), Some(JAIL_FAILED));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mount the root: ENOENT"), "{output:?}");
}

#[test]
fn cgroup_that_is_gone_is_told_and_the_archive_is_not_read() {
    let Some(fixture) = Fixture::new() else { return };
    let mount_point = fixture.directory.path().join("jail");
    fs::create_dir(&mount_point).unwrap();
    let cgroup = Some(PathBuf::from("/nowhere"));
    let jail = Jail { uid: UID, cgroup, mount_point, largest_file: 1 << 20, cpu_seconds: 60 };
    let running = fixture.start_worker(&Worker { jail, output: 1 << 20, names: 1 << 20 });
    let output = running.finish(one_file(100));
    assert_eq!(output.status.code(), Some(JAIL_FAILED));
    assert!(String::from_utf8_lossy(&output.stderr).contains("enter cgroup /nowhere"), "{output:?}");
}

/// A file stands for `cgroup.procs`: what is written to it is what the kernel would be given.
#[test]
fn converter_enters_its_cgroup_before_anything_else() {
    let Some(fixture) = Fixture::new() else { return };
    let (cgroup, mount_point) =
        (fixture.directory.path().join("cgroup"), fixture.directory.path().join("jail"));
    for directory in [&cgroup, &mount_point] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(cgroup.join("cgroup.procs"), "").unwrap();
    let jail =
        Jail { uid: UID, cgroup: Some(cgroup.clone()), mount_point, largest_file: 1 << 20, cpu_seconds: 60 };
    let output =
        fixture.start_worker(&Worker { jail, output: 1 << 20, names: 1 << 20 }).finish(one_file(100));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(cgroup.join("cgroup.procs")).unwrap(), "0");
}
