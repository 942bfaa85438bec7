//! The node's initramfs: busybox, the modules that reach the machine's root, and `early.sh` as /init.
//!
//! It is made anew for every node: that takes some milliseconds, and there is nothing that could be stale.

use super::kernel::Kernel;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Static, so that it runs where there is nothing else.
const BUSYBOX: &str = "/bin/busybox";
const EARLY: &str = include_str!("../../node/early.sh");
const EARLY_MODULES: [&str; 4] = ["virtio_mmio", "virtiofs", "overlay", "virtio_console"];

/// Writes the initramfs for `kernel` to `path`.
pub fn write(kernel: &Kernel, path: &Path) -> Result<()> {
    let busybox = fs::read(BUSYBOX).context("cannot read /bin/busybox: apt-get install busybox-static")?;
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.file("bin/busybox", &busybox);
    archive.file("init", EARLY.as_bytes());
    archive.directory("modules");
    let mut order = String::new();
    for module in kernel.load_order(&EARLY_MODULES)? {
        let name = module.file_stem().and_then(|stem| stem.to_str()).context("a module without a name")?;
        let name = name.trim_end_matches(".ko");
        archive.file(&format!("modules/{name}"), &read_module(&module)?);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules.order", order.as_bytes());
    fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}

/// Newer Debian kernels have compressed modules; busybox's insmod wants them plain.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let (program, arguments) = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", ["-dc"]),
        Some("zst") => ("zstd", ["-dcq"]),
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let unpacked = Command::new(program).args(arguments).arg(path).output();
    let unpacked = unpacked.with_context(|| format!("cannot run {program} for {}", path.display()))?;
    if !unpacked.status.success() {
        bail!("{program} cannot unpack {}", path.display());
    }
    Ok(unpacked.stdout)
}

/// A cpio archive of the `newc` kind (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let (inode, size, name_size) = (self.inode, content.len(), name.len() + 1);
        let fields = format!("070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}", 0, 1);
        let rest = format!("{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}{name}\0", 0);
        self.padded(format!("{fields}{rest}").as_bytes());
        self.padded(content);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.bytes.write_all(bytes).expect("a Vec takes everything");
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.file("d/hello", b"world");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cpio");
        fs::write(&path, archive.finish()).unwrap();
        let mut cpio = Command::new("/bin/busybox");
        let status = cpio.args(["cpio", "-i", "-F"]).arg(&path).current_dir(dir.path()).status().unwrap();
        assert!(status.success());
        assert_eq!(fs::read(dir.path().join("d/hello")).unwrap(), b"world");
    }
}
