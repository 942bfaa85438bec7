//! The layers of containers' roots on their pod's disk: attached when the first container needs one, detached when the
//! last is gone.
//!
//! Called by `create`, `remove` and, after a restart, `events`, under the pod's lock. Who uses what is not counted but looked
//! up, so that there is nothing to get wrong after a crash.

use super::record::MappedLayer;
use super::{ContainerError, Containers};
use crate::hypervisor::{Extent, VmHandle};
use crate::image::Layer;
use crate::undo::Undo;
use std::fs::File;
use std::sync::Arc;

/// Where the guest's own root is on the disk.
const GUEST_ROOT: u64 = 0;

impl Containers {
    /// Maps what is not yet mapped. Each new mapping's release is on `undo`.
    pub(super) async fn attach_layers(
        self: &Arc<Self>,
        sandbox_id: &str,
        vm: &VmHandle,
        layers: &[Layer],
        undo: &mut Undo,
    ) -> Result<Vec<MappedLayer>, ContainerError> {
        let present = self.mapped(sandbox_id);
        let mut mapped: Vec<MappedLayer> = Vec::with_capacity(layers.len());
        for layer in layers {
            let chain_id = layer.chain_id.to_string();
            // An image may name the same layer twice.
            let known = mapped.iter().chain(&present).find(|m| m.chain_id == chain_id).cloned();
            let layer = match known {
                Some(layer) => layer,
                None => attach(vm, layer, chain_id, undo).await?,
            };
            mapped.push(layer);
        }
        Ok(mapped)
    }

    /// Detaches those of `layers` that no container of the sandbox uses any more.
    pub(super) async fn detach_layers(&self, sandbox_id: &str, vm: &VmHandle, layers: &[MappedLayer]) {
        let used = self.mapped(sandbox_id);
        let mut done: Vec<u64> = Vec::new();
        for layer in layers {
            if done.contains(&layer.offset) || used.iter().any(|u| u.offset == layer.offset) {
                continue;
            }
            done.push(layer.offset);
            detach(sandbox_id, vm, layer.offset).await;
        }
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
        for extent in extents.iter().filter(is_layer) {
            if used.iter().all(|layer| layer.offset != extent.offset) {
                tracing::info!(sandbox = sandbox_id, extent.offset, "layer that nothing uses is detached");
                detach(sandbox_id, vm, extent.offset).await;
            }
        }
    }

    fn mapped(&self, sandbox_id: &str) -> Vec<MappedLayer> {
        self.of_sandbox(sandbox_id).iter().flat_map(|c| c.record().layers.clone()).collect()
    }
}

/// A failure is only told: the file stays open in the VMM until the pod ends, and nothing else hangs on it.
async fn detach(sandbox_id: &str, vm: &VmHandle, offset: u64) {
    if let Err(error) = vm.detach_extent(offset).await {
        tracing::warn!(sandbox = sandbox_id, offset, %error, "layer not detached");
    }
}

async fn attach(
    vm: &VmHandle,
    layer: &Layer,
    chain_id: String,
    undo: &mut Undo,
) -> Result<MappedLayer, ContainerError> {
    let file = File::open(&layer.path).map_err(|source| ContainerError::File {
        what: "image layer",
        path: layer.path.clone(),
        source,
    })?;
    let length = layer.size.next_multiple_of(512);
    let offset = vm.attach_extent(file, length, true).await?;
    let vm = Arc::clone(vm);
    undo.push("layer", move || async move { vm.detach_extent(offset).await })?;
    Ok(MappedLayer { chain_id, offset, length })
}
