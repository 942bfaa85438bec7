//! VMs that get more memory for their containers, and what may happen meanwhile.

use crate::fakes::{FakeNode, container, pod};
use isopod_runtime::container::{ContainerSpec, Containers};
use isopod_runtime::hypervisor::Vm;
use isopod_runtime::resources::Resources;
use isopod_runtime::sandbox::{SandboxSpec, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A container of that name and memory limit.
fn limited(name: &str, mib: i64) -> ContainerSpec {
    let resources = Resources { memory_limit_in_bytes: mib << 20, ..Default::default() };
    ContainerSpec { resources, ..container(name) }
}

#[tokio::test]
async fn stop_and_containers_that_make_the_vm_grow_do_not_wait_for_each_other() {
    let node = FakeNode::new();
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers::open(directory.path(), Arc::clone(&node.sandboxes), node.events).unwrap();
    let id = node.sandboxes.start(pod("web")).await.unwrap();
    let (sandbox, vm) = (node.sandboxes.get(&id).unwrap(), node.hypervisor.vm(&id).unwrap());
    let before = sandbox.snapshot().size.1;

    // Both enter the sandbox. The first makes the VM grow, and the second waits for its turn to do so.
    let hold = vm.resizing.lock().await;
    let create = |name, mib| containers.create(&sandbox, limited(name, mib));
    let story = async {
        tokio::join!(create("first", 64), create("second", 128), node.sandboxes.stop(&sandbox), async {
            // The stop has killed the VM and waits for those inside.
            vm.ended().await;
            drop(hold);
        })
    };
    let told = timeout(Duration::from_secs(10), story).await;
    let (first, second, stopped, ()) = told.expect("they wait for each other");
    assert!(first.is_err() && second.is_err(), "there is no VM to be in");
    stopped.unwrap();
    assert_eq!(sandbox.state(), State::Stopped);
    assert_eq!(sandbox.snapshot().size.1, before + 128, "the second did not come to let the VM grow");
}

#[tokio::test]
async fn container_without_limits_leaves_a_small_vm_as_it_is() {
    let node = FakeNode::new();
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers::open(directory.path(), Arc::clone(&node.sandboxes), node.events).unwrap();
    let little = Resources { memory_limit_in_bytes: 1 << 20, ..Default::default() };
    let spec = SandboxSpec { resources: Some(little.clone()), overhead: Some(little), ..pod("small") };
    let id = node.sandboxes.start(spec).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    let before = sandbox.snapshot().size;

    // The fake agent makes none, but the VM would have grown before.
    assert!(containers.create(&sandbox, limited("free", 0)).await.is_err());
    assert_eq!(sandbox.snapshot().size, before);
}
