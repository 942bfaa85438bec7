//! What a template is made from, and by what it is told whether it may still be cloned.
//!
//! A [`Recipe`] is what a configuration says; a [`Key`] adds which files were found under its paths. A clone runs the
//! template's kernel and reads the VM's guest root, so both must be the files that the template was booted from: a package
//! update that replaces one changes the key, and the template is made anew.

use super::super::files::Files;
use super::super::{VmSpec, most_vcpus};
use crate::config;
use isopod_protocols::vmm::BootConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// How a template is made: all that a guest sees of its configuration, and who may share it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The VMM's program.
    pub vmm: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest root.
    pub root_image: PathBuf,
    /// Size and settings of the VM.
    pub boot: BootConfig,
    /// Name of the scope: VMs of another one are not cloned from it. Empty: all of the node.
    pub scope: String,
}

impl Recipe {
    /// What a VM of that configuration is cloned from; `None` where it is to boot.
    pub fn of(spec: &VmSpec) -> Option<Self> {
        Some(Self {
            vmm: spec.vmm.clone(),
            kernel: spec.kernel.clone(),
            root_image: spec.root_image.clone(),
            boot: spec.boot_config(),
            scope: spec.template_scope.clone()?,
        })
    }

    /// What a handler's pods that name no size are cloned from; `None` where they share nothing on the whole node.
    pub fn node_wide(settings: &config::VmConfig) -> Option<Self> {
        let template_scope = settings.template.scope(None);
        Self::of(&VmSpec { template_scope, ..VmSpec::new(settings.clone()) })
    }

    /// Whether pods of a handler with these settings may still be cloned from it, whatever their size.
    pub fn serves(&self, settings: &config::VmConfig) -> bool {
        let namespace = self.scope.strip_prefix(config::NAMESPACE_SCOPE);
        settings.template.scope(namespace).is_some_and(|scope| scope == self.scope)
            && (&settings.vmm, &settings.kernel, &settings.root_image)
                == (&self.vmm, &self.kernel, &self.root_image)
            && most_vcpus(settings, self.boot.vcpus) == self.boot.max_vcpus
            && settings.huge_pages == self.boot.huge_pages
            && settings.nested_virtualization == self.boot.nested_virtualization
            && settings.kernel_args == self.boot.kernel_args
    }

    /// The key as the files are now.
    pub fn key(&self) -> io::Result<Key> {
        Ok(Key {
            recipe: self.clone(),
            vmm: Stamp::of(&fs::metadata(&self.vmm)?),
            kernel: Stamp::of(&fs::metadata(&self.kernel)?),
            root_image: Stamp::of(&fs::metadata(&self.root_image)?),
        })
    }
}

/// A recipe, and the files that it was followed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The recipe.
    pub recipe: Recipe,
    vmm: Stamp,
    kernel: Stamp,
    root_image: Stamp,
}

/// What tells a file from another one, and from itself with other content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Key {
    /// What a VM of that configuration with these files may be cloned from; `None` where it is to boot, also because a
    /// file cannot be looked at: the boot then says which.
    pub fn of(spec: &VmSpec, files: &Files) -> Option<Self> {
        let recipe = Recipe::of(spec)?;
        // The VMM is started by its path, so it alone is looked at by it.
        let vmm = Stamp::of(&fs::metadata(&recipe.vmm).ok()?);
        let kernel = Stamp::of(&files.kernel.metadata().ok()?);
        let root_image = Stamp::of(&files.root_image.metadata().ok()?);
        Some(Self { recipe, vmm, kernel, root_image })
    }

    /// Memory that its guests boot with, bytes.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.recipe.boot.memory_mib) << 20
    }

    /// The key as 64 hexadecimal digits.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).expect("numbers, texts and paths of a text file can be encoded");
        Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key for people and for the VMM: printable, and shorter than 256 bytes.
    pub fn built_from(&self) -> String {
        let BootConfig { vcpus, memory_mib, .. } = self.recipe.boot;
        format!("{vcpus} vcpu, {memory_mib} MiB, {}", self.hash())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn recipe(directory: &Path) -> Recipe {
        for name in ["vmm", "kernel", "root"] {
            fs::write(directory.join(name), name).unwrap();
        }
        let settings = config::VmConfig {
            vmm: directory.join("vmm"),
            kernel: directory.join("kernel"),
            root_image: directory.join("root"),
            ..config::VmConfig::default()
        };
        Recipe::node_wide(&settings).unwrap()
    }

    #[test]
    fn key_is_the_same_until_anything_of_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let recipe = recipe(directory.path());
        let before = recipe.key().unwrap();
        assert_eq!(before.hash(), recipe.key().unwrap().hash());
        let others = [
            Recipe { scope: "ns:a".into(), ..recipe.clone() },
            Recipe { boot: BootConfig { vcpus: 2, ..recipe.boot.clone() }, ..recipe.clone() },
            Recipe {
                boot: BootConfig { nested_virtualization: true, ..recipe.boot.clone() },
                ..recipe.clone()
            },
            Recipe { boot: BootConfig { memory_mib: 300, ..recipe.boot.clone() }, ..recipe.clone() },
            Recipe {
                boot: BootConfig { kernel_args: vec!["x".into()], ..recipe.boot.clone() },
                ..recipe.clone()
            },
        ];
        for other in others {
            assert_ne!(before.hash(), other.key().unwrap().hash());
        }
    }

    #[test]
    fn replaced_file_of_the_same_size_and_time_changes_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let recipe = recipe(directory.path());
        let before = recipe.key().unwrap();
        let time = fs::metadata(&recipe.kernel).unwrap().modified().unwrap();
        let new = directory.path().join("new");
        fs::write(&new, "KERNEL").unwrap();
        fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
        fs::rename(&new, &recipe.kernel).unwrap();
        assert_ne!(before, recipe.key().unwrap());
    }

    #[test]
    fn what_the_vmm_is_told_is_short_and_printable() {
        let directory = tempfile::tempdir().unwrap();
        let mut recipe = recipe(directory.path());
        recipe.scope = format!("ns:{}\n", "x".repeat(500));
        let told = recipe.key().unwrap().built_from();
        assert!(told.starts_with("1 vcpu, 256 MiB, ") && told.len() < 256, "{told}");
        assert!(told.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{told}");
    }

    #[test]
    fn recipe_serves_the_handlers_that_it_was_made_for() {
        let directory = tempfile::tempdir().unwrap();
        let node = recipe(directory.path());
        let settings = |template| config::VmConfig {
            vmm: node.vmm.clone(),
            kernel: node.kernel.clone(),
            root_image: node.root_image.clone(),
            template,
            memory_mib: 4096,
            ..config::VmConfig::default()
        };
        use config::TemplateScope::{Namespace, Node, Off};
        assert!(node.serves(&settings(Node)));
        assert!(!node.serves(&settings(Namespace)) && !node.serves(&settings(Off)));
        let namespace = Recipe { scope: "ns:a".into(), ..node.clone() };
        assert!(namespace.serves(&settings(Namespace)));
        assert!(!namespace.serves(&settings(Node)));
        assert!(!node.serves(&config::VmConfig { huge_pages: true, ..settings(Node) }));
        assert!(!node.serves(&config::VmConfig { nested_virtualization: true, ..settings(Node) }));
    }
}
