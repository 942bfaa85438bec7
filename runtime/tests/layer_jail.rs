//! The layer converter's jail, seen from outside: the real daemon program, the real mkfs.erofs.
//!
//! Needs root, and says so where it is not; mkfs.erofs is that of `ISOPOD_MKFS_EROFS`, or else of `guest-image/erofs-utils`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use isopod_runtime::image::jail::{Jail, NOT_JAILED, OUTPUT};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const UID: u32 = 1_999_999_998;

struct Room {
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Room {
    /// `None`, with the reason printed, where this machine cannot run the test.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a jail is made by root");
            return None;
        }
        let named = std::env::var_os("ISOPOD_MKFS_EROFS").map(PathBuf::from);
        Some(Self { directory: tempfile::tempdir().unwrap(), program: named.unwrap_or_else(built) })
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("output")
    }

    fn start(&self, largest_file: u64) -> Child {
        let mount_point = self.directory.path().join("jail");
        fs::create_dir_all(&mount_point).unwrap();
        let output = File::create(self.output()).unwrap();
        chown(self.output(), Some(UID), Some(UID)).unwrap();
        let jail = Jail {
            program: self.program.clone(),
            arguments: ["--quiet", "--tar=f", "--sort=none", "-Enoinline_data", OUTPUT]
                .map(str::to_owned)
                .to_vec(),
            uid: UID,
            mount_point,
            largest_file,
            cpu_seconds: 60,
        };
        let command = jail.command(Path::new(env!("CARGO_BIN_EXE_isopod"))).unwrap();
        let mut command = command.into_std();
        command.stdin(Stdio::piped()).stdout(Stdio::from(output)).stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

/// The program from the cache, which is filled where it is empty.
fn built() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-image/erofs-utils/build.sh");
    let ran = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(ran.status.success(), "erofs-utils cannot be built");
    Path::new(String::from_utf8(ran.stdout).unwrap().trim()).join("mkfs.erofs")
}

/// An archive with one file of `length` bytes.
fn archive(length: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..4].copy_from_slice(b"file");
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{length:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.resize(512 + length.next_multiple_of(512), 7);
    header.resize(header.len() + 1024, 0);
    header
}

fn finish(mut child: Child, archive: &[u8]) -> Output {
    // a converter that fails stops reading
    let _ = child.stdin.take().unwrap().write_all(archive);
    child.wait_with_output().unwrap()
}

/// The status of the process, once it is the converter.
fn status_in_the_jail(child: &Child) -> String {
    let begun = Instant::now();
    loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        if status.contains("Seccomp:\t2") && !status.contains("Name:\tisopod") {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "never jailed: {status}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn converter_is_nobody_in_an_empty_room() {
    let Some(room) = Room::new() else { return };
    let child = room.start(1 << 30);
    let status = status_in_the_jail(&child);
    let is = |line: String| assert!(status.contains(&line), "no {line:?} in {status}");
    is(format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n"));
    is(format!("Gid:\t{UID}\t{UID}\t{UID}\t{UID}\n"));
    is("Groups:\t \n".to_owned());
    is("NoNewPrivs:\t1\n".to_owned());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        is(format!("{set}:\t0000000000000000\n"));
    }
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let mut names: Vec<_> =
        fs::read_dir(process.join("root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["image", "tmp"]);
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |process: &Path| fs::metadata(process.join("ns").join(namespace)).unwrap().ino();
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{namespace}");
    }
    let links = fs::read_dir(process.join("fd")).unwrap().count();
    assert!(links <= 6, "{links} files are open");
    assert!(finish(child, &archive(100)).status.success());
}

#[test]
fn converter_makes_an_image_and_says_nothing() {
    let Some(room) = Room::new() else { return };
    let output = finish(room.start(1 << 30), &archive(100_000));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let image = fs::read(room.output()).unwrap();
    assert_eq!(image[1024..1028], 0xE0F5_E1E2_u32.to_le_bytes());
}

#[test]
fn file_beyond_the_limit_is_an_error_that_is_told() {
    let Some(room) = Room::new() else { return };
    let output = finish(room.start(1 << 20), &archive(4 << 20));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("File too large"), "{output:?}");
    assert!(fs::metadata(room.output()).unwrap().len() <= 1 << 20);
}

#[test]
fn program_that_is_not_there_is_named() {
    let Some(room) = Room::new() else { return };
    let room = Room { program: "/nowhere/mkfs.erofs".into(), ..room };
    let output = finish(room.start(1 << 20), &[]);
    assert_eq!(output.status.code(), Some(NOT_JAILED));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("open /nowhere/mkfs.erofs: ENOENT"),
        "{output:?}"
    );
}
