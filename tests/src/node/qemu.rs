//! Finds the QEMU that runs the node, or fetches it.
//!
//! Debian 12's QEMU 7.2 hangs with two emulated CPUs and nested guests; 10.0 does not. It comes from bookworm-backports as unpacked
//! packages in the cache: nothing is installed, and the machine's own apt state is not touched. There one fault of it is mended, see
//! [`super::mend`]; an installed QEMU, however new, has it.

use super::mend;
use crate::artefacts;
use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first major version that runs two emulated CPUs with nested guests without a hang.
const TRUSTED_MAJOR: u32 = 10;

const MIRROR: &str = "http://deb.debian.org/debian";
const VERSION: &str = "1:10.0.2+ds-2+deb13u1~bpo12+1";
const PACKAGES: [(&str, &str); 3] = [
    ("qemu-system-x86", "4a6b1856c8b0d7df4ff8e70249e12c473ccf8d516aadb4ae14d3d938faed0c65"),
    ("qemu-system-common", "23a4672a138832d7173855e981aa8282c73ef5e04e080fa7ada9f82c6b34f507"),
    ("qemu-system-data", "2d831088187087013b3fcbd19bdfb955b182a2d5a08f6dafa0ad1c6d2007fb4e"),
];

/// A QEMU that can run.
#[derive(Debug)]
pub struct Qemu {
    /// The program `qemu-system-x86_64`.
    pub program: PathBuf,
    /// Where its firmware lies; QEMU's own default when empty.
    pub firmware: Vec<PathBuf>,
    /// Whether it can be given more than one emulated CPU.
    pub trusted_with_two_cpus: bool,
}

impl Qemu {
    /// In this order: the program that `ISOPOD_QEMU` names, the one in the cache, the pinned packages. When those cannot be had, an
    /// installed one serves; with one CPU, if it is too old for two.
    pub fn locate() -> Result<Qemu> {
        if let Some(program) = std::env::var_os("ISOPOD_QEMU") {
            return Qemu::installed(Path::new(&program)).context("ISOPOD_QEMU is set");
        }
        let cached =
            fetched().with_context(|| format!("cannot fetch QEMU {VERSION} from bookworm-backports"));
        match (cached, Qemu::installed(Path::new("qemu-system-x86_64"))) {
            (Ok(root), _) => Qemu::unpacked(&root),
            (Err(error), Ok(qemu)) => {
                let cpus = if qemu.trusted_with_two_cpus { "" } else { " with one CPU" };
                eprintln!("node: {error:#}; using {}{cpus}", qemu.program.display());
                Ok(qemu)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    fn installed(program: &Path) -> Result<Qemu> {
        let major = major_version(program)?;
        let trusted_with_two_cpus = major >= TRUSTED_MAJOR;
        Ok(Qemu { program: program.to_owned(), firmware: Vec::new(), trusted_with_two_cpus })
    }

    fn unpacked(root: &Path) -> Result<Qemu> {
        let program = root.join("usr/bin/qemu-system-x86_64");
        major_version(&program).with_context(|| {
            let missing = missing_libraries(&program);
            format!(
                "QEMU lacks libraries ({missing}): apt-get install --no-install-recommends qemu-system-x86"
            )
        })?;
        // the packages leave SeaBIOS to the package of that name, which Debian 12's own QEMU brings
        let firmware = [root.join("usr/share/qemu"), "/usr/share/qemu".into(), "/usr/share/seabios".into()];
        Ok(Qemu { program, firmware: firmware.into(), trusted_with_two_cpus: true })
    }
}

fn major_version(program: &Path) -> Result<u32> {
    let shown = output(Command::new(program).arg("--version"))?;
    shown
        .split_once("version ")
        .and_then(|(_, rest)| rest.split('.').next()?.parse().ok())
        .with_context(|| format!("{} --version says {shown:?}", program.display()))
}

fn missing_libraries(program: &Path) -> String {
    let listed = output(Command::new("ldd").arg(program)).unwrap_or_default();
    let missing: Vec<_> =
        listed.lines().filter_map(|line| line.trim().strip_suffix(" => not found")).collect();
    missing.join(", ")
}

/// The directory of the unpacked packages, filled at the first call. Callers that come at the same time wait for each other.
fn fetched() -> Result<PathBuf> {
    let kind = artefacts::cache()?.join("qemu");
    let root = kind.join(format!("{}-mended", VERSION.replace([':', '~'], "_")));
    if root.is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(&kind).with_context(|| format!("cannot make {}", kind.display()))?;
    let lock = fs::File::create(kind.join(".lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if root.is_dir() {
        return Ok(root);
    }
    eprintln!("node: fetching QEMU {VERSION} (13 MB, once)");
    let work = tempfile::tempdir_in(&kind)?;
    let unpacked = work.path().join("root");
    for package in download(work.path())? {
        output(Command::new("dpkg-deb").arg("-x").arg(package).arg(&unpacked))?;
    }
    mend::mend(&unpacked.join("usr/bin/qemu-system-x86_64"))?;
    fs::rename(&unpacked, &root)?;
    Ok(root)
}

/// Downloads the pinned packages into `dir` with package lists of its own and checks their digests.
fn download(dir: &Path) -> Result<Vec<PathBuf>> {
    let sources = dir.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(&sources, format!("deb [signed-by={keyring}] {MIRROR} bookworm-backports main\n"))?;
    fs::create_dir_all(dir.join("lists/partial"))?;
    fs::create_dir_all(dir.join("archives/partial"))?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(dir).args([
            "-q",
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
            "-o",
            "APT::Sandbox::User=root",
        ]);
        apt.args(["-o", &format!("Dir::Etc::sourcelist={}", sources.display())]);
        apt.args(["-o", &format!("Dir::State::lists={}/lists", dir.display())]);
        apt.args(["-o", &format!("Dir::Cache={}", dir.display())]);
        apt
    };
    output(apt().arg("update"))?;
    output(apt().arg("download").args(PACKAGES.map(|(name, _)| format!("{name}={VERSION}"))))?;

    let mut packages = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((_, pinned)) = PACKAGES.iter().find(|(package, _)| name.starts_with(&format!("{package}_")))
        else {
            continue;
        };
        let found: String =
            Sha256::digest(fs::read(&path)?).iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(found == *pinned, "{name} has sha256 {found}, but {pinned} is pinned: refused");
        packages.push(path);
    }
    ensure!(packages.len() == PACKAGES.len(), "apt-get downloaded {packages:?} of {PACKAGES:?}");
    Ok(packages)
}

/// What the command printed; its stderr is in the error.
fn output(command: &mut Command) -> Result<String> {
    let ran = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !ran.status.success() {
        bail!("{command:?}: {}: {}", ran.status, String::from_utf8_lossy(&ran.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
