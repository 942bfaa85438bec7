//! Figures of pods, some of whose VMMs do not answer: a guest can keep its VMM busy with a disk.

use crate::fakes::{FakeNode, container, pod};
use isopod_protocols::cri::runtime_service_server::RuntimeService;
use isopod_protocols::cri::{ListPodSandboxStatsRequest, PodSandboxStatsRequest};
use isopod_runtime::container::Containers;
use isopod_runtime::cri::{Node, RuntimeDoor};
use isopod_runtime::hypervisor::template::Templates;
use isopod_runtime::image::Images;
use isopod_runtime::pod::Pods;
use isopod_runtime::preparation::Agents;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::Request;

/// Two seconds for those that do not answer, all together, and some for this machine.
const SOON: Duration = Duration::from_secs(4);

/// What the CRI serves on a node, and the node's directory, which is removed when it is dropped.
pub async fn served(node: FakeNode) -> (Arc<Node>, Arc<TempDir>) {
    let (cgroups, config) = (node.directory.path().join("cgroup"), node.config);
    let state = &config.daemon.state_dir;
    let rehearsed = container("rehearsed");
    let agents = Agents { scratch: node.scratch, scratch_mib: config.vm.scratch_mib, container: rehearsed };
    let templates =
        Templates::open(state, cgroups, config.vm.template_uid(), Box::new(agents)).await.unwrap();
    let images = config.daemon.root_dir.join("images");
    let images = Images::open(&images, &config.image, &config.registry, None).unwrap();
    let containers = Containers::open(state, Arc::clone(&node.sandboxes), node.events).unwrap();
    let pods = Pods::new(Arc::clone(&node.sandboxes), Arc::clone(&containers));
    let served = Node { sandboxes: node.sandboxes, containers, pods, images, templates, config };
    (Arc::new(served), node.directory)
}

#[tokio::test]
async fn vmms_that_do_not_answer_hold_no_others_up_and_leave_out_their_network_only() {
    let node = FakeNode::new();
    let hypervisor = Arc::clone(&node.hypervisor);
    let mut ids = Vec::new();
    for name in ["silent", "mute", "sound"] {
        let id = node.sandboxes.start(pod(name)).await.unwrap();
        let cgroup = node.sandboxes.get(&id).unwrap().cgroup.clone();
        fs::write(cgroup.path().join("cpu.stat"), "usage_usec 5\n").unwrap();
        ids.push(id);
    }
    let vms: Vec<_> = ids.iter().map(|id| hypervisor.vm(id).unwrap()).collect();
    let _silent = vms[0].answering.lock().await;
    let _mute = vms[1].answering.lock().await;
    let (node, _directory) = served(node).await;
    let door = RuntimeDoor::new(node);

    let begun = Instant::now();
    let list = door.list_pod_sandbox_stats(Request::new(ListPodSandboxStatsRequest::default()));
    let list = timeout(2 * SOON, list).await.expect("the list is held up").unwrap().into_inner();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(list.stats.len(), 3);
    for stats in list.stats {
        let id = stats.attributes.unwrap().id;
        let linux = stats.linux.unwrap();
        assert_eq!(linux.network.is_some(), id == ids[2], "of {id}");
        assert_eq!(linux.cpu.unwrap().usage_core_nano_seconds.unwrap().value, 5000);
    }
    let one = PodSandboxStatsRequest { pod_sandbox_id: ids[0].clone() };
    let one = timeout(SOON, door.pod_sandbox_stats(Request::new(one))).await.expect("it is held up").unwrap();
    assert!(one.into_inner().stats.unwrap().linux.unwrap().network.is_none());
}
