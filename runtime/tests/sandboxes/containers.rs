//! How many containers a pod may have.

use crate::fakes::{FakeNode, Wishes, container, image, pod};
use isopod_protocols::guest::MAX_CONTAINERS;
use isopod_runtime::container::{ContainerError, Containers};
use std::sync::Arc;

#[tokio::test]
async fn container_beyond_the_limit_is_refused_until_another_is_removed() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.containers);
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers::open(directory.path(), Arc::clone(&node.sandboxes), node.events).unwrap();
    let id = node.sandboxes.start(pod("full"), "").await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    for number in 0..MAX_CONTAINERS {
        containers.create(&sandbox, container(&format!("c{number}")), image()).await.unwrap();
    }
    let error = containers.create(&sandbox, container("more"), image()).await.err().unwrap();
    assert!(matches!(&error, ContainerError::TooMany(pod) if *pod == id), "{error}");

    containers.remove(Some(&sandbox), &containers.list()[0]).await.unwrap();
    containers.create(&sandbox, container("more"), image()).await.unwrap();
}
