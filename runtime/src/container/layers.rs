//! The layers of containers' roots on their pod's disk: attached when the first container needs one, detached when the
//! last is gone.
//!
//! Called by `create` and `remove`, under the pod's lock. Who uses what is not counted but looked up, so that there is
//! nothing to get wrong after a crash.

use super::record::MappedLayer;
use super::{ContainerError, Containers};
use crate::hypervisor::VmHandle;
use crate::image::Layer;
use crate::undo::Undo;
use std::fs::File;
use std::sync::Arc;

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
            let diff_id = layer.diff_id.to_string();
            // An image may name the same layer twice.
            let known = mapped.iter().chain(&present).find(|m| m.diff_id == diff_id).cloned();
            let layer = match known {
                Some(layer) => layer,
                None => attach(vm, layer, diff_id, undo).await?,
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
            if let Err(error) = vm.detach_extent(layer.offset).await {
                // The file stays open in the VMM until the pod ends; nothing else hangs on it.
                tracing::warn!(sandbox = sandbox_id, layer = layer.diff_id, %error, "layer not detached");
            }
        }
    }

    fn mapped(&self, sandbox_id: &str) -> Vec<MappedLayer> {
        self.of_sandbox(sandbox_id).iter().flat_map(|c| c.record().layers.clone()).collect()
    }
}

async fn attach(
    vm: &VmHandle,
    layer: &Layer,
    diff_id: String,
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
    Ok(MappedLayer { diff_id, offset, length })
}
