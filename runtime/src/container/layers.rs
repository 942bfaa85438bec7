//! The layers of containers' roots on their pod's disk: attached when the first container needs one, detached when the
//! last is gone.
//!
//! Called by `create`, `remove` and, after a restart, `events`, under the pod's lock. Who uses what is not counted but looked
//! up, so that there is nothing to get wrong after a crash.

use super::record::MappedLayer;
use super::spec::RootSource;
use super::{ContainerError, Containers};
use crate::hypervisor::{Extent, VmHandle};
use crate::undo::Undo;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Where the guest's own root is on the disk.
const GUEST_ROOT: u64 = 0;

impl Containers {
    /// Maps those parts of a root that are not mapped yet. Each new mapping's release is on `undo`.
    pub(super) async fn attach_layers(
        self: &Arc<Self>,
        sandbox_id: &str,
        vm: &VmHandle,
        sources: &[RootSource],
        undo: &mut Undo,
    ) -> Result<Vec<MappedLayer>, ContainerError> {
        let present = self.mapped(sandbox_id);
        let mut mapped: Vec<MappedLayer> = Vec::with_capacity(sources.len());
        for RootSource::Extent { chain_id, path, size } in sources {
            // An image may name the same layer twice.
            let known = mapped.iter().chain(&present).find(|m| m.chain_id == *chain_id).cloned();
            let layer = match known {
                Some(layer) => layer,
                None => attach(vm, chain_id, path, *size, undo).await?,
            };
            mapped.push(layer);
        }
        Ok(mapped)
    }

    /// Detaches those of `layers` that no container of the sandbox uses any more.
    pub(super) async fn detach_layers(&self, sandbox_id: &str, vm: &VmHandle, layers: &[MappedLayer]) {
        let used = self.mapped(sandbox_id);
        let mut unused: Vec<u64> = Vec::new();
        for layer in layers {
            if !unused.contains(&layer.offset) && used.iter().all(|u| u.offset != layer.offset) {
                unused.push(layer.offset);
            }
        }
        detach_all(sandbox_id, vm, &unused).await;
    }

    /// Detaches layers that no container of the sandbox has in its record. Under the pod's lock none is about to have one.
    pub(super) async fn detach_unused_layers(&self, sandbox_id: &str, vm: &VmHandle) {
        let extents = match vm.extents().await {
            Ok(extents) => extents,
            Err(error) => {
                tracing::warn!(sandbox = sandbox_id, %error, "cannot look for layers that nothing uses");
                return;
            }
        };
        let used = self.mapped(sandbox_id);
        let is_layer = |extent: &&Extent| extent.read_only && extent.offset != GUEST_ROOT;
        let offsets = extents.iter().filter(is_layer).map(|extent| extent.offset);
        let unused: Vec<u64> =
            offsets.filter(|offset| used.iter().all(|layer| layer.offset != *offset)).collect();
        let detached = detach_all(sandbox_id, vm, &unused).await;
        if detached > 0 {
            tracing::info!(sandbox = sandbox_id, detached, "layers that nothing used are detached");
        }
    }

    fn mapped(&self, sandbox_id: &str) -> Vec<MappedLayer> {
        self.of_sandbox(sandbox_id).iter().flat_map(|c| c.record().layers.clone()).collect()
    }
}

/// Answers how many it detached. The first failure is the last attempt, and is only told: the files stay open
/// in the VMM until the pod ends, and nothing else hangs on it. A VMM that refuses, or does not answer, is
/// asked once and not for each layer.
async fn detach_all(sandbox_id: &str, vm: &VmHandle, offsets: &[u64]) -> usize {
    for (detached, &offset) in offsets.iter().enumerate() {
        if let Err(error) = vm.detach_extent(offset).await {
            let left = offsets.len() - detached;
            tracing::warn!(sandbox = sandbox_id, offset, left, %error, "layers not detached");
            return detached;
        }
    }
    offsets.len()
}

async fn attach(
    vm: &VmHandle,
    chain_id: &str,
    path: &Path,
    size: u64,
    undo: &mut Undo,
) -> Result<MappedLayer, ContainerError> {
    let file = File::open(path).map_err(|source| ContainerError::File {
        what: "image layer",
        path: path.to_owned(),
        source,
    })?;
    let length = size.next_multiple_of(512);
    let offset = vm.attach_extent(file, length, true).await?;
    let vm = Arc::clone(vm);
    undo.push("layer", move || async move { vm.detach_extent(offset).await })?;
    Ok(MappedLayer { chain_id: chain_id.to_owned(), offset, length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::hypervisor::fake::FakeHypervisor;
    use crate::hypervisor::{Hypervisor, VmSpec};

    #[tokio::test]
    async fn first_failure_ends_the_detaching() {
        let hypervisor = FakeHypervisor::new(drop);
        let mut undo = Undo::new("layers");
        let spec = VmSpec { id: "vm".into(), ..VmSpec::new(config::VmConfig::default()) };
        let vm = hypervisor.boot(&spec, &mut undo).await.unwrap().vm;
        undo.keep();
        let mut offsets = Vec::new();
        for _ in 0..3 {
            offsets.push(vm.attach_extent(File::open("/dev/null").unwrap(), 512, true).await.unwrap());
        }
        // The one in the middle is there no more.
        vm.detach_extent(offsets[1]).await.unwrap();
        assert_eq!(detach_all("pod", &vm, &offsets).await, 1);
        let left = hypervisor.vm("vm").unwrap().extents();
        assert_eq!(left.into_keys().collect::<Vec<_>>(), [offsets[2]]);
        assert_eq!(detach_all("pod", &vm, &offsets[2..]).await, 1);
    }
}
