//! The node's kernel and its initramfs: busybox, the modules that reach the machine's root, and `early.sh` as /init.
//!
//! It is made anew for every node: that takes some milliseconds, and there is nothing that could be stale.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Static, so that it runs where there is nothing else.
const BUSYBOX: &str = "/bin/busybox";
const EARLY: &str = include_str!("../../node/early.sh");
const EARLY_MODULES: [&str; 4] = ["virtio_mmio", "virtiofs", "overlay", "virtio_console"];

/// A Debian cloud kernel: it has kvm-amd, kvm-intel, vhost, tun and netfilter as modules, and starts fast.
#[derive(Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    release: String,
}

impl Kernel {
    /// The newest installed one.
    pub fn newest() -> Result<Kernel> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/boot").context("cannot list /boot")? {
            let image = entry?.path();
            let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(release) =
                name.strip_prefix("vmlinuz-").filter(|release| release.ends_with("-cloud-amd64"))
            {
                found.push((numbers(release), Kernel { release: release.to_owned(), image }));
            }
        }
        let newest = found.into_iter().max_by(|(a, _), (b, _)| a.cmp(b));
        let (_, kernel) =
            newest.context("no /boot/vmlinuz-*-cloud-amd64: apt-get install linux-image-cloud-amd64")?;
        Ok(kernel)
    }

    /// Paths of these modules and of all that they need, each after those it depends on.
    pub fn load_order(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let mut modprobe = Command::new("modprobe");
        modprobe.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args([
            "-S",
            &self.release,
            "--show-depends",
            "-a",
        ]);
        let listed = modprobe.args(modules).output().context("cannot run modprobe: apt-get install kmod")?;
        ensure!(listed.status.success(), "{modprobe:?}: {}", String::from_utf8_lossy(&listed.stderr).trim());
        let mut order = Vec::new();
        // "insmod PATH"; what is built into the kernel says "builtin NAME"
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some(path) = line.strip_prefix("insmod ") else { continue };
            let path = PathBuf::from(path.trim());
            if !order.contains(&path) {
                order.push(path);
            }
        }
        Ok(order)
    }

    /// Writes the initramfs to `path`.
    pub fn write_initramfs(&self, path: &Path) -> Result<()> {
        let busybox =
            fs::read(BUSYBOX).context("cannot read /bin/busybox: apt-get install busybox-static")?;
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/busybox", &busybox);
        archive.file("init", EARLY.as_bytes());
        archive.directory("modules");
        let mut order = String::new();
        for module in self.load_order(&EARLY_MODULES)? {
            let name =
                module.file_stem().and_then(|stem| stem.to_str()).context("a module without a name")?;
            let name = name.trim_end_matches(".ko");
            archive.file(&format!("modules/{name}"), &read_module(&module)?);
            order.push_str(name);
            order.push('\n');
        }
        archive.file("modules.order", order.as_bytes());
        fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
    }
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

/// The numbers in a kernel release: `6.1.0-9` is older than `6.1.0-56`.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
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
    fn kernel_releases_compare_by_number() {
        assert!(numbers("6.1.0-9-cloud-amd64") < numbers("6.1.0-56-cloud-amd64"));
        assert!(numbers("6.1.0-56-cloud-amd64") < numbers("6.12.1+bpo-cloud-amd64"));
    }

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
