//! How many containers a pod may have, and what they are called.

use crate::fakes::{FakeNode, Wishes, container, pod};
use isopod_protocols::guest::MAX_CONTAINERS;
use isopod_runtime::container::{ContainerError, ContainerSpec, Containers};
use std::sync::Arc;

#[tokio::test]
async fn container_beyond_the_limit_is_refused_until_another_is_removed() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.containers);
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers::open(directory.path(), Arc::clone(&node.sandboxes), node.events).unwrap();
    let id = node.sandboxes.start(pod("full")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    for number in 0..MAX_CONTAINERS {
        containers.create(&sandbox, container(&format!("c{number}"))).await.unwrap();
    }
    let error = containers.create(&sandbox, container("more")).await.err().unwrap();
    assert!(matches!(&error, ContainerError::TooMany(pod) if *pod == id), "{error}");

    containers.remove(Some(&sandbox), &containers.list()[0]).await.unwrap();
    containers.create(&sandbox, container("more")).await.unwrap();
}

#[tokio::test]
async fn id_of_the_caller_is_used_once_and_is_a_plain_name() {
    let node = FakeNode::new();
    Wishes::set(&node.wishes.containers);
    let directory = tempfile::tempdir().unwrap();
    let containers = Containers::open(directory.path(), Arc::clone(&node.sandboxes), node.events).unwrap();
    let id = node.sandboxes.start(pod("named")).await.unwrap();
    let sandbox = node.sandboxes.get(&id).unwrap();
    let create = |name, id: &str| {
        containers.create(&sandbox, ContainerSpec { id: Some(id.to_owned()), ..container(name) })
    };
    assert_eq!(create("first", "task-1").await.unwrap().id, "task-1");
    for id in ["task-1", "../task", ""] {
        let error = create("second", id).await.err().unwrap();
        assert!(matches!(&error, ContainerError::BadId(bad) if bad == id), "{error}");
    }
    create("second", "task-2").await.unwrap();
    containers.remove(Some(&sandbox), &containers.get("task-1").unwrap()).await.unwrap();
    create("first", "task-1").await.unwrap();
}
