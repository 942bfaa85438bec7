//! The node's kernel: Debian's for clouds, which has kvm-amd, kvm-intel, tun and netfilter as modules, and
//! starts fast. It is the machine's own, or where something is measured that of `tests/tools/node-kernel.sh`,
//! so that all machines measure on the same.

use crate::artefacts;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A kernel and its modules, as a distribution installs them below a directory.
#[derive(Debug)]
pub struct Kernel {
    /// What QEMU boots.
    pub image: PathBuf,
    /// Where `lib/modules/` is.
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// The newest of the machine's, or the pinned one; in either case that of a directory which
    /// `ISOPOD_NODE_KERNEL` names.
    pub fn locate(pinned: bool) -> Result<Kernel> {
        Self::newest_in(artefacts::node_kernel(pinned)?)
    }

    fn newest_in(root: PathBuf) -> Result<Kernel> {
        let mut found = Vec::new();
        let boot = root.join("boot");
        for entry in fs::read_dir(&boot).with_context(|| format!("cannot list {}", boot.display()))? {
            let image = entry?.path();
            let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(release) =
                name.strip_prefix("vmlinuz-").filter(|release| release.ends_with("-cloud-amd64"))
            {
                found.push((numbers(release), release.to_owned(), image));
            }
        }
        let newest = found.into_iter().max_by(|(a, ..), (b, ..)| a.cmp(b));
        let (_, release, image) = newest.with_context(|| {
            format!("no vmlinuz-*-cloud-amd64 in {}: apt-get install linux-image-cloud-amd64", boot.display())
        })?;
        Ok(Kernel { image, root, release })
    }

    /// Its modules, which the node must have below its own `/lib/modules`.
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }

    /// The kernel as QEMU starts it fastest: unpacked, once, where the machine's own CPU does it and not an emulated one. Some other
    /// packing than Debian's is left to the kernel.
    pub fn unpacked(self) -> Result<Kernel> {
        let meta = self.image.metadata()?;
        let kind = artefacts::cache()?.join("node-kernel");
        let path = kind.join(format!("vmlinux-{}-{:x}-{:x}", self.release, meta.size(), meta.mtime()));
        if !path.exists() {
            let image =
                fs::read(&self.image).with_context(|| format!("cannot read {}", self.image.display()))?;
            let Some((payload, unpacker)) = payload(&image) else { return Ok(self) };
            fs::create_dir_all(&kind)?;
            let work = tempfile::tempdir_in(&kind)?;
            unpack(payload, unpacker, &work.path().join("vmlinux"))
                .with_context(|| format!("cannot unpack {}", self.image.display()))?;
            fs::rename(work.path().join("vmlinux"), &path)?;
        }
        Ok(Kernel { image: path, ..self })
    }

    /// Paths of these modules and of all that they need, each after those it depends on.
    pub fn load_order(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let mut modprobe = Command::new("modprobe");
        modprobe.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("-d").arg(&self.root);
        modprobe.args(["-S", &self.release, "--show-depends", "-a"]);
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
}

/// The packed kernel in a bzImage and the program that unpacks it (kernel: Documentation/arch/x86/boot.rst, `payload_offset`).
fn payload(image: &[u8]) -> Option<(&[u8], &'static str)> {
    let word =
        |offset: usize| Some(u32::from_le_bytes(image.get(offset..offset + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let begin = (setup_sectors + 1) * 512 + word(0x248)?;
    let end = begin.checked_add(word(0x24c)?)?;
    // the last word of a payload is its size unpacked
    let packed = image.get(begin..end.checked_sub(4)?)?;
    let unpacker = match packed.get(..4)? {
        b"\x02\x21\x4c\x18" => "lz4",
        b"\x28\xb5\x2f\xfd" => "zstd",
        b"\xfd7zX" => "xz",
        _ => return None,
    };
    Some((packed, unpacker))
}

fn unpack(payload: &[u8], unpacker: &str, to: &Path) -> Result<()> {
    let packed = to.with_extension("packed");
    fs::write(&packed, payload)?;
    let mut command = Command::new(unpacker);
    command.arg("-dcq").stdin(File::open(&packed)?).stdout(File::create(to)?).stderr(Stdio::inherit());
    let status =
        command.status().with_context(|| format!("cannot run {unpacker}: apt-get install {unpacker}"))?;
    ensure!(status.success(), "{unpacker}: {status}");
    ensure!(fs::read(to)?.starts_with(b"\x7fELF"), "what {unpacker} made is no ELF file");
    Ok(())
}

/// The numbers in a kernel release: `6.1.0-9` is older than `6.1.0-56`.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
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
    fn a_payload_is_found_without_its_size_word() {
        let mut image = vec![0; 0x250];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12_u32.to_le_bytes());
        image.resize(1024 + 16, 0);
        image.extend(b"\x28\xb5\x2f\xfdabcdSIZE");
        assert_eq!(payload(&image), Some((&b"\x28\xb5\x2f\xfdabcd"[..], "zstd")));
    }

    #[test]
    fn an_image_that_is_cut_short_has_no_payload() {
        assert_eq!(payload(b"MZ"), None);
        let mut image = vec![0xff; 0x250];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(payload(&image), None);
    }
}
