//! Makes and checks EROFS files with the programs that belong to the file system: those beside `ISOPOD_MKFS_EROFS`, or else of
//! `guest-image/erofs-utils`, which fills the cache where it is empty. It runs without a jail here.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// All content in blocks of its own, and nothing that depends on the time.
pub const LAYER: &[&str] = &[
    "--quiet",
    "--tar=f",
    "--aufs",
    "--sort=none",
    "-Enoinline_data",
    "-T0",
    "--mkfs-time",
    "-U00000000-0000-4000-8000-69736f706f64",
];

/// Converts `archive` to a file at `path` and opens it. What mkfs.erofs complains of is the error.
pub fn convert(archive: &[u8], arguments: &[&str], path: &Path) -> Result<File, String> {
    // mkfs.erofs makes the file terabytes long for a moment, unless that is an error
    let script = r#"ulimit -f 1048576; trap "" XFSZ; exec "$0" "$@""#;
    let mut child = Command::new("/bin/bash")
        .args(["-c", script])
        .arg(program())
        .args(arguments)
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // a converter that fails stops reading
    let _ = child.stdin.take().unwrap().write_all(archive);
    let output = child.wait_with_output().unwrap();
    match output.status.success() && output.stderr.is_empty() {
        true => Ok(File::open(path).unwrap()),
        false => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

/// What fsck.erofs finds wrong with an image.
pub fn check(path: &Path) -> Result<(), String> {
    // it reads all content this way
    let output =
        Command::new(program().with_file_name("fsck.erofs")).arg("--extract").arg(path).output().unwrap();
    match output.status.success() && output.stderr.is_empty() {
        true => Ok(()),
        false => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| std::env::var_os("ISOPOD_MKFS_EROFS").map_or_else(built, PathBuf::from))
}

fn built() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-image/erofs-utils/build.sh");
    let ran = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(ran.status.success(), "erofs-utils cannot be built");
    Path::new(String::from_utf8(ran.stdout).unwrap().trim()).join("mkfs.erofs")
}
